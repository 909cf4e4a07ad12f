"""The end of a run that is lost again and again before its next checkpoint, and would cost the same work each time."""

from pydantic import BaseModel, ValidationError

from shortened_llm.storage.urls import read_bytes, write_bytes

MOST_LOST = 10
"""Attempts in a row that may be lost; more where search.max_failures is larger."""


class StandstillError(RuntimeError):
    """No attempt of a run comes as far as its next checkpoint."""


class Beginnings(BaseModel):
    """How often a run has begun at the same step."""

    step: int
    count: int
    workers: int
    """Workers of the last attempt."""


def fault_of_standstill(url: str, *, step: int, num_steps: int, workers: int, most_lost: int) -> str | None:
    """Count an attempt that begins at `step`; returns why there should be none where `most_lost` did before it. One
    with more workers than the one before does not count: that was not lost, but stopped to grow.

    Args:
        url: the file that counts.
        num_steps: of the run.
    """
    count = 1
    try:
        known = Beginnings.model_validate_json(read_bytes(url))
        if known.step == step:
            count = known.count + (workers <= known.workers)
    except (FileNotFoundError, ValidationError):
        pass  # the first; or the count was cut short, and begins anew
    if count > most_lost:
        lost = f"{most_lost} attempts in a row were lost or stopped behind step {step} of {num_steps}"
        if step == num_steps:
            return f"{lost}, before the model was exported; the same command tries again"
        return (
            f"{lost}, before the next checkpoint; a smaller retraining.checkpoint_tokens loses less, and the same "
            "command goes on from that step"
        )
    write_bytes(url, Beginnings(step=step, count=count, workers=workers).model_dump_json().encode())
    return None
