"""What a plan needs computed before it can be loaded."""

from typing import Protocol

from shortened_llm.records import Transform
from shortened_llm.storage.store import Store


class PlanWork(Protocol):
    """Computes tensors from a model and calibration text, and stores them once."""

    @property
    def fingerprint(self) -> str:
        """The identity of what is computed."""

    @property
    def title(self) -> str:
        """A word or two for logs, such as `compensate`."""

    def stored(self, store: Store) -> Transform | None:
        """How it is loaded, where it is stored."""

    def compute(self, store: Store, *, device: str, memory_gib: float | None) -> None:
        """Compute and store it, unless it is stored.

        Args:
            memory_gib: for the hidden states; half of the free memory unless given.
        """
