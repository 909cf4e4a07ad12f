"""A rehearsal loses its workers once, so that what comes after a loss is tried before it happens."""

from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.loop import TrainLoop
from shortened_llm.storage.urls import exists, write_bytes

STEPS = 3
"""Steps of a run that is interrupted at its last one, with a checkpoint after each: by then the first of them is
stored, since the second waited for it."""


class RehearsedLossError(RuntimeError):
    """The loss of a worker that a rehearsal brings about."""


class NotRestoredError(RuntimeError):
    """A run that lost its workers found no checkpoint to go on from."""


class Interruption:
    """A hook at a report: the worker that has it fails, once in all attempts of a run."""

    def __init__(self, mark_url: str) -> None:
        """`mark_url` is a file that says that it has failed."""
        self._mark_url = mark_url

    def check_restored(self, *, resumes: bool) -> None:
        """Check that an attempt after the loss goes on from a checkpoint.

        Raises:
            NotRestoredError: it begins anew.
        """
        if exists(self._mark_url) and not resumes:
            raise NotRestoredError("after its workers were lost, the run found no checkpoint that it could go on from")

    def __call__(self, loop: TrainLoop, point: TrainingPoint) -> None:
        if point.step == STEPS and not exists(self._mark_url):
            write_bytes(self._mark_url, b"")
            raise RehearsedLossError(f"lost at step {point.step}, as a rehearsal does once")
