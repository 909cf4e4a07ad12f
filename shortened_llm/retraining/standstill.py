"""The end of a run that is lost again and again before its next checkpoint, and would cost the same work each time."""

from pydantic import BaseModel, ValidationError

from shortened_llm.storage.urls import read_bytes, write_bytes

MOST_LOST = 10
"""Attempts in a row, at the least."""


class StandstillError(RuntimeError):
    """No attempt of a run comes as far as its next checkpoint."""


class Beginnings(BaseModel):
    """How often a run has begun at the same step."""

    step: int
    count: int


def fault_of_standstill(url: str, step: int, most_lost: int) -> str | None:
    """Count an attempt that begins at `step`; returns why there should be none where `most_lost` did before it.

    Args:
        url: the file that counts.
    """
    count = 1
    try:
        known = Beginnings.model_validate_json(read_bytes(url))
        count += known.count if known.step == step else 0
    except (FileNotFoundError, ValidationError):
        pass  # the first; or the count was cut short, and begins anew
    if count > most_lost:
        return (
            f"{most_lost} attempts in a row were lost between step {step} and the next checkpoint; a smaller "
            "retraining.checkpoint_tokens loses less, and the same command goes on from that step"
        )
    write_bytes(url, Beginnings(step=step, count=count).model_dump_json().encode())
    return None
