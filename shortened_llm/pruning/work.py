"""What a plan needs computed before it can be loaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from shortened_llm.models.write import WeightWriter
from shortened_llm.records import Payload, Transform
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.scratch import temporary_directory
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


def uploaded(tensors: Iterable[tuple[str, torch.Tensor]], layout: Mapping[str, torch.Tensor], url: str) -> Payload:
    """Write tensors to storage while they are computed.

    Args:
        tensors: by name, in the order of the layout.
        layout: their shapes and types, on the meta device.
        url: directory to put the files into.
    """
    with temporary_directory() as temporary:
        writer = WeightWriter(layout, Path(temporary), on_file=lambda _: None)
        for name, tensor in tensors:
            writer.add(name, tensor)
        writer.close()
        return Payload(url=url, files=upload_directory(Path(temporary), url))
