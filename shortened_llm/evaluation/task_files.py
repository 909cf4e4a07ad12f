"""The user's own task files: which of them a task's numbers depend on."""

import glob
from collections.abc import Iterator
from pathlib import Path

import yaml

from shortened_llm.fingerprint import file_sha256

YAML_ENDINGS = ("yaml", ".yml")  # "yaml" without a dot too: lm-eval's templates are named `_default_template_yaml`
ENDINGS = (*YAML_ENDINGS, ".py", ".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")


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


class _Loader(yaml.SafeLoader):
    """Reads tags such as `!function` as nothing."""


_Loader.add_multi_constructor("!", lambda *_: None)


def _named(path: Path) -> Iterator[Path]:
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError):  # lm-eval says what is wrong with it, if the task is asked for
        return
    for key, value in _entries(values):
        # datasets looks from the working directory, lm-eval beside the YAML.
        for place in _strings(value):
            pattern = place if key == "data_files" else str(path.parent / place)
            yield from (Path(found) for found in sorted(glob.glob(pattern, recursive=True)) if Path(found).is_file())


def _entries(values: object) -> Iterator[tuple[str, object]]:
    """What stands under `data_files` and `include`, at any depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key in ("data_files", "include"):
                yield key, value
            else:
                yield from _entries(value)
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
