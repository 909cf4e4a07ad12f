"""The checkpoint before a wsd schedule decays: where a later run with more tokens goes on.

It lies in the store under the fingerprint of what such runs share, so that it serves every experiment.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.manifest import step_of
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.storage import layout
from shortened_llm.storage.payload import download_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import filesystem, is_local, join, list_names


def keeps_stable(job: RetrainingJob, step: int) -> bool:
    """Whether the checkpoint after `step` steps is to be kept."""
    return job.placement.keep_stable_checkpoint and step == stable_end(job.recipe)


def stable_url(job: RetrainingJob, store: Store, name: str) -> str:
    """Where a kept checkpoint lies: `name` is that of Ray's own copy, which no other attempt has. Its manifests tell
    whether it is whole, so it needs no record."""
    return join(layout.stable_url(store.url, job.run.stable_fingerprint), name)


def stable_urls(job: RetrainingJob, store: Store) -> list[str]:
    """Kept checkpoints that the run may begin with, newest first."""
    names = sorted(list_names(layout.stable_url(store.url, job.run.stable_fingerprint)), reverse=True)
    return [stable_url(job, store, name) for name in names if step_of(name) <= stable_end(job.recipe)]


def stable_checkpoints(urls: Iterable[str]) -> list[tuple[str, Callable[[], AbstractContextManager[str]]]]:
    """Candidates for `checkpoint.newest_usable`: (name, what makes it a directory of this node)."""
    return [(f"the kept checkpoint {url}", partial(_as_directory, url)) for url in urls]


@contextlib.contextmanager
def _as_directory(url: str) -> Iterator[str]:
    if is_local(url):
        yield filesystem(url)[1]
        return
    with temporary_directory() as directory:
        yield str(download_directory(url, Path(directory)))
