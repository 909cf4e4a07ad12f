"""Finds which files and which content of the hub a task reads, so that its score is stored under them."""

import glob
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

from shortened_llm.evaluation.task_check import task_manager, task_settings
from shortened_llm.fingerprint import file_sha256

YAML_ENDINGS = ("yaml", ".yml")  # "yaml" without a dot too: lm-eval's templates are named `_default_template_yaml`
ENDINGS = (*YAML_ENDINGS, ".py", ".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")
HUB_SECONDS = 10
FILE_FORMATS = ("json", "csv", "parquet", "arrow", "text", "xml", "pandas", "webdataset")
"""What `datasets` takes for a path where the files are named apart."""


def hub_commits(name: str, directory: str | None) -> dict[str, str]:
    """The commit of each hub data set that a task or group reads, by its id.

    A data set that names its revision is left out: that stands in the task's files. So is one of which neither the hub
    nor the cache of this machine tells a commit; its task cannot be read either.
    """
    found: dict[str, str] = {}
    for leaf in task_settings(name, task_manager(name, directory).task_index):
        path = str(leaf.get("dataset_path") or "")
        is_unpinned = bool(path) and _is_hub_id(path) and "revision" not in (leaf.get("dataset_kwargs") or {})
        if is_unpinned and (commit := _commit(path)):
            found[path] = commit
    return found


def _is_hub_id(path: str) -> bool:
    return path not in FILE_FORMATS and not Path(path).exists()


@lru_cache
def _commit(path: str) -> str | None:
    try:
        return HfApi().dataset_info(path, timeout=HUB_SECONDS).sha
    except Exception:  # of several libraries; without the hub, what is cached is read
        cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="dataset") / "refs" / "main"
        return cached.read_text().strip() if cached.is_file() else None


def task_file_hashes(directory: str) -> dict[str, str]:
    """SHA-256 of every task file, module and data file in `directory`, and of what its YAML names elsewhere.

    That is `data_files` on this machine, and files to `include`. Not found are modules that `!function` imports from
    elsewhere, and data on the hub, which a YAML can pin with `dataset_kwargs: {revision: …}`.

    Returns:
        By path: in the directory relative to it, elsewhere as it is named.
    """
    root = Path(directory)
    inside = [path for path in sorted(root.rglob("*")) if path.name.endswith(ENDINGS) and path.is_file()]
    hashes = {path.relative_to(root).as_posix(): file_sha256(path) for path in inside}
    own = {path.resolve() for path in inside}
    for path in inside:
        if path.name.endswith(YAML_ENDINGS):
            hashes |= {str(named): file_sha256(named) for named in _named(path) if named.resolve() not in own}
    return hashes


def _named(path: Path) -> Iterator[Path]:
    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):  # lm-eval says what is wrong with it, if the task is asked for
        return
    for key, place in _places(root):
        # datasets looks from the working directory, lm-eval beside the YAML.
        pattern = place if key == "data_files" else str(path.parent / place)
        yield from (Path(found) for found in sorted(glob.glob(pattern, recursive=True)) if Path(found).is_file())


def _places(node: yaml.Node | None, key: str | None = None) -> Iterator[tuple[str, str]]:
    """What stands under `data_files` and `include`, at any depth."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _places(value, key or (name.value if name.value in ("data_files", "include") else None))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _places(value, key)
    elif isinstance(node, yaml.ScalarNode) and key:
        yield key, node.value
