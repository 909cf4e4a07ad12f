"""What to do when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

T = TypeVar("T")


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """The result of `work`; None, and its memory freed, where memory runs out."""
    try:
        return work()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # Behind the except clause, where the error no longer holds the frames and their tensors.
    clear_device_cache(garbage_collection=True)
    return None
