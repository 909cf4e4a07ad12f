"""Finds which content of the hub a task reads, so that its score is stored under it."""

from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

from shortened_llm.evaluation.task_check import task_manager, task_settings

HUB_SECONDS = 10
FILE_FORMATS = ("json", "csv", "parquet", "arrow", "text", "xml", "pandas", "webdataset")
"""What `datasets` takes for a path where the files are named apart."""


def hub_commits(name: str, directory: str | None) -> dict[str, str]:
    """The commit of each hub data set that a task or group reads, by its id.

    A data set that names its revision is left out: that stands in the task's files. So is one of which neither the hub
    nor the cache of this machine tells a commit; its task cannot be read either.

    Args:
        directory: the user's own task files.
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
