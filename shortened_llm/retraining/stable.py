"""The checkpoint before a wsd schedule decays: where a later run with more tokens goes on.

It lies in the store under the fingerprint of what such runs share, so that it serves every experiment.
"""

from shortened_llm.logs import LOGGER
from shortened_llm.retraining.checkpoint import check_complete
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.manifest import DamagedCheckpointError, step_of
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.storage import layout
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, list_names


def keeps_stable(job: RetrainingJob, step: int) -> bool:
    """Whether the checkpoint after `step` steps is to be kept."""
    return job.placement.keep_stable_checkpoint and step == stable_end(job.recipe)


def stable_url(job: RetrainingJob, store: Store, name: str) -> str:
    """Where a kept checkpoint lies: `name` is that of Ray's own copy, which no other attempt has. Its manifests tell
    whether it is whole, so it needs no record."""
    return join(layout.stable_url(store.url, job.run.stable_fingerprint), name)


def stable_urls(job: RetrainingJob, store: Store) -> list[str]:
    """Kept checkpoints that the run may begin with, newest first; those that lack a file are left out."""
    names = sorted(list_names(layout.stable_url(store.url, job.run.stable_fingerprint)), reverse=True)
    urls = (stable_url(job, store, name) for name in names if step_of(name) <= stable_end(job.recipe))
    return [url for url in urls if _is_complete(url)]


def _is_complete(url: str) -> bool:
    try:
        check_complete(url)
    except DamagedCheckpointError as error:
        LOGGER.warning("the kept checkpoint %s cannot be used (%s)", url, error)
        return False
    return True
