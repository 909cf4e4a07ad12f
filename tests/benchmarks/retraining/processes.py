"""Run a procedure in fresh processes, so that no measurement disturbs the next."""

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import fair_threads, prepare_cpu


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a procedure runs."""

    rank: int
    world_size: int
    directory: Path
    """Shared by the processes, and empty at their start."""

    @contextlib.contextmanager
    def process_group(self, device_type: str = "cpu") -> Iterator[None]:
        """The processes as one group, on this machine."""
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        backend = "nccl" if device_type == "cuda" else "gloo"
        rendezvous = f"file://{self.directory}/rendezvous"
        dist.init_process_group(backend, init_method=rendezvous, rank=self.rank, world_size=self.world_size)
        yield
        dist.destroy_process_group()


def run(procedure: Callable[..., Any], *arguments: object, processes: int = 1, prepared: bool = True) -> Any:
    """What `procedure(place, *arguments)` returns in the first of so many processes.

    Args:
        prepared: with the package's allocator settings and a fair share of the cores; else as torch comes.
    """
    with tempfile.TemporaryDirectory(prefix="shortened_llm_benchmark_") as directory:
        mp.spawn(_child, args=(processes, Path(directory), prepared, procedure, arguments), nprocs=processes)
        return pickle.loads((Path(directory) / "result").read_bytes())


def _child(
    rank: int, processes: int, directory: Path, prepared: bool, procedure: Callable[..., Any], arguments: tuple
) -> None:
    quiet_libraries()
    if prepared:
        prepare_cpu(fair_threads(processes))
    shared = directory / "shared"
    shared.mkdir(exist_ok=True)
    result = procedure(Place(rank=rank, world_size=processes, directory=shared), *arguments)
    if rank == 0:
        (directory / "result").write_bytes(pickle.dumps(result))
