"""The checkpoint before a wsd schedule decays: where a later run with more tokens goes on.

It lies in the store under the fingerprint of what such runs share, so that it serves every experiment.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.storage.payload import download_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import filesystem, is_local, join, list_names

KIND = "stable"


def keeps_stable(job: RetrainingJob, step: int) -> bool:
    """Whether the checkpoint after `step` steps is to be kept."""
    return job.placement.keep_stable_checkpoint and job.recipe.schedule == "wsd" and step == stable_end(job.recipe)


def stable_url(job: RetrainingJob, store: Store, step: int) -> str:
    """Where the kept checkpoint lies. Its manifests tell whether it is whole, so it needs no record."""
    return join(store.url, KIND, job.stable_fingerprint, f"step_{step:08d}")


def stable_checkpoints(job: RetrainingJob, store: Store) -> list[tuple[str, Callable[[], AbstractContextManager[str]]]]:
    """Kept checkpoints that the run may begin with, newest first: (name, what makes it a directory of this node)."""
    if job.recipe.schedule != "wsd":
        return []
    root = join(store.url, KIND, job.stable_fingerprint)
    steps = sorted(int(name.removeprefix("step_")) for name in list_names(root) if name.startswith("step_"))
    urls = [stable_url(job, store, step) for step in reversed(steps) if step <= stable_end(job.recipe)]
    return [(f"the kept checkpoint {url}", partial(_as_directory, url)) for url in urls]


@contextlib.contextmanager
def _as_directory(url: str) -> Iterator[str]:
    if is_local(url):
        yield filesystem(url)[1]
        return
    with tempfile.TemporaryDirectory(prefix="shortened_llm_stable_") as directory:
        yield str(download_directory(url, Path(directory)))
