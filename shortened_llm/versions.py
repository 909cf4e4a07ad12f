"""Versions of what sets numbers, or the form of what processes exchange: equal on every node."""

import platform
import socket
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

LIBRARIES = ("ray", "torch", "transformers", "peft", "safetensors", "lm-eval")


class VersionsDifferError(RuntimeError):
    """Two nodes have different versions; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What one node has."""

    node: str
    """Its name, for messages."""
    versions: tuple[tuple[str, str], ...]
    """(name, version); that of torch may end with its build, as in 2.13.0+cu130."""
    uses_gpu: bool

    @classmethod
    def here(cls, *, uses_gpu: bool) -> "Installed":
        libraries = [(name, version(name)) for name in LIBRARIES]
        return cls(
            node=socket.gethostname(), versions=(("python", platform.python_version()), *libraries), uses_gpu=uses_gpu
        )


def check_equal(found: Iterable[Installed]) -> None:
    """Raises `VersionsDifferError` where nodes differ.

    torch's build, its CUDA, must be one among GPU nodes: a head without a GPU may have the smaller image.
    """
    where: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for installed in found:
        for name, full in installed.versions:
            public, _, build = full.partition("+")
            where[name][public].add(installed.node)
            if name == "torch" and installed.uses_gpu:
                where["the build of torch"][build].add(installed.node)
    for name, nodes in where.items():
        if len(nodes) > 1:
            listed = "; ".join(f"{one or 'none'} on {', '.join(sorted(nodes[one]))}" for one in sorted(nodes))
            raise VersionsDifferError(f"{name} differs between nodes: {listed}; use one image for all of them")
