"""Save a run while it goes on, and restore it: sharded weights and optimiser by DCP, progress as JSON.

A checkpoint holds what training changes: parameters with `requires_grad` and the optimiser's state of them. The rest,
such as the frozen weights below a LoRA adapter, comes from loading the model again.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from shortened_llm.config import flatten
from shortened_llm.fingerprint import canonical
from shortened_llm.logs import LOGGER
from shortened_llm.records import Recipe, from_json, to_json
from shortened_llm.retraining.manifest import (
    DamagedCheckpointError,
    WrittenFile,
    check_content,
    check_sizes,
    write_manifest,
)
from shortened_llm.retraining.progress import RunProgress
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.storage.scratch import scratch_directory
from shortened_llm.storage.urls import join, read_bytes

T = TypeVar("T")

PROGRESS_NAME = "progress.json"
LONGEST_DOWNLOAD = timedelta(hours=6)
"""A worker that is lost ends what others wait for, so that this limits only a wait for nothing."""


class CheckpointError(RuntimeError):
    """Writing or reading a checkpoint failed on some worker."""


LENGTH = {"recipe.num_steps", "recipe.decay_steps", "recipe.final_learning_rate_ratio"}
"""What runs of different lengths differ in; before either decays, they are one run."""


class CheckpointMismatchError(RuntimeError):
    """A checkpoint belongs to another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProgress:
    """What the progress file of a checkpoint says."""

    progress: RunProgress
    identity: dict[str, object]
    """The job's identity, canonical: what its fingerprint is the hash of."""
    num_ranks: int
    """Workers that wrote the checkpoint; each left a manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCheckpoint:
    """A checkpoint whose content is fixed and which is being written."""

    directory: Path
    """Directory of this worker's files, on this node, until the process ends or whoever takes it further deletes it."""
    written: Future[None]

    def wait(self) -> Path:
        """The directory, once this worker's files are complete; raises what writing them raised."""
        self.written.result()
        return self.directory


class Checkpointer:
    """Writes the checkpoints of one run in the background. Every worker builds one and calls it at the same steps.

    `save` copies the state to a host buffer (reused, pinned where there is a GPU) and returns; a thread writes the
    buffer. Its collectives run in a process group of their own, since the default group is the training's.

    SmolLM2-135M without six blocks (1.36 GB) on 2 CPU cores: `save` keeps the loop for 0.16 s (0.45 s the first time,
    to get the buffer), writing and hashing take 1.1 s of one core beside it.
    """

    def __init__(self, identity: Mapping[str, object], device: torch.device) -> None:
        """A collective.

        Args:
            identity: of the job; a checkpoint resumes no other.
            device: of the parameters.
        """
        self._on_gpu = device.type == "cuda"
        self._identity = identity
        self._scratch = scratch_directory()
        self._group = dist.new_group(backend="gloo")
        # Not `DefaultStager`, which drops its buffers after each use in torch 2.11, and then fails.
        self._stager = StateDictStager(pin_memory=self._on_gpu, share_memory=False)
        # A thread begins with the first GPU; writing would take memory there for each worker of a node.
        own_gpu = partial(torch.cuda.set_device, torch.cuda.current_device()) if self._on_gpu else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=own_gpu)
        self._pending: PendingCheckpoint | None = None

    def save(self, model: nn.Module, optimizer: Optimizer, progress: RunProgress) -> PendingCheckpoint:
        """Fix the state as it is now and start to write it, once the previous checkpoint is written. A collective.

        Raises:
            CheckpointError, OSError: writing the previous checkpoint failed.
        """
        if self._pending is not None:
            self._pending.wait()
        staged = self._stager.stage(_trained_state(model, optimizer), non_blocking=self._on_gpu)
        if self._on_gpu:
            torch.cuda.synchronize()
        directory = Path(tempfile.mkdtemp(dir=self._scratch))
        saved = SavedProgress(
            progress=progress,
            identity=canonical(self._identity),  # type: ignore[arg-type]
            num_ranks=dist.get_world_size(),
        )
        written = self._thread.submit(self._write, staged, saved, directory)
        self._pending = PendingCheckpoint(directory=directory, written=written)
        return self._pending

    def close(self) -> None:
        """Wait for the last checkpoint and free the buffer; raises what writing it raised."""
        self._thread.shutdown()
        self._stager.close()
        if self._pending is not None:
            self._pending.wait()

    def _write(self, staged: Any, saved: SavedProgress, directory: Path) -> None:
        try:
            # Not synced to the disk: this copy is for the upload, and the manifest tells what arrived.
            writer = dcp.FileSystemWriter(directory, sync_files=False)
            with _ordinary_errors("writing"):
                dcp.save(staged, storage_writer=writer, process_group=self._group)
            if dist.get_rank() == 0:
                (directory / PROGRESS_NAME).write_text(to_json(saved))
            write_manifest(directory, dist.get_rank())
        except Exception as error:
            free, needed = shutil.disk_usage(directory).free, _local_bytes(staged)
            shutil.rmtree(directory, ignore_errors=True)
            if free < needed:  # torch tells of a full disk only in the terms of its file format
                disk = self._scratch.parent
                raise CheckpointError(
                    f"no space left on the disk of {disk}: a checkpoint takes {needed / 2**20:,.0f} MiB there"
                ) from error
            raise


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: Optimizer, identity: Mapping[str, object]
) -> RunProgress:
    """Restore model and optimiser in place, for any number of workers. A collective.

    Args:
        directory: verified by `verify_checkpoint`.
        identity: of the job that goes on.

    Raises:
        CheckpointMismatchError: the checkpoint is of another job; the message names what differs.
    """
    saved = from_json(SavedProgress, (directory / PROGRESS_NAME).read_bytes())
    theirs, ours = flatten(saved.identity), flatten(canonical(identity))  # type: ignore[arg-type]
    differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if differing and saved.progress.step > _shared_steps(saved.identity, identity, differing):
        listed = "; ".join(f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in differing)
        raise CheckpointMismatchError(f"{directory} is a checkpoint of another run: {listed}")
    state = _trained_state(model, optimizer)
    with _ordinary_errors("reading"):
        dcp.load(state, storage_reader=dcp.FileSystemReader(directory))  # weights in place
    set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"])
    return saved.progress


def _shared_steps(theirs: Mapping[str, object], ours: Mapping[str, object], differing: Iterable[str]) -> int:
    """Steps that two runs have in common: those before a learning rate decays where only their lengths differ."""
    if not LENGTH.issuperset(differing):
        return 0
    recipes = (TypeAdapter(Recipe).validate_python(canonical(identity["recipe"])) for identity in (theirs, ours))
    return min(stable_end(recipe) for recipe in recipes)


def check_complete(url: str) -> tuple[SavedProgress, tuple[WrittenFile, ...]]:
    """Whether every file of the checkpoint at a directory or URL is there with its size; reads no content.

    Raises:
        DamagedCheckpointError: one is not.
    """
    try:
        saved = from_json(SavedProgress, read_bytes(join(url, PROGRESS_NAME)))
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{PROGRESS_NAME} is missing") from None
    except ValidationError:
        raise DamagedCheckpointError(f"{PROGRESS_NAME} is damaged") from None
    return saved, check_sizes(url, saved.num_ranks)


def verify_checkpoint(directory: Path, *, part: int = 0, parts: int = 1) -> RunProgress:
    """Check that every file is there with its size, and that the content of this part of them is what was written.

    Args:
        part, parts: the workers of a node share the reading.

    Raises:
        DamagedCheckpointError: with the file and what is wrong with it.
    """
    saved, files = check_complete(str(directory))
    check_content(directory, files[part::parts])
    return saved.progress


@contextlib.contextmanager
def newest_usable(
    candidates: Iterable[tuple[str, Callable[[], AbstractContextManager[str]]]],
    *,
    part: int,
    parts: int,
) -> Iterator[Path | None]:
    """Directory on this node of the first checkpoint that is whole, or None. A collective.

    A checkpoint that one worker finds missing or damaged is passed over by all; any other failure to read is raised,
    so that a fault of the network costs no work.

    Args:
        candidates: (name, what makes it a directory of this node), newest first, the same on all workers.
        part, parts: the workers of a node share the reading.
    """
    passed_over = False
    for name, as_directory in candidates:
        with contextlib.ExitStack() as stack:
            fault, directory = None, Path()
            try:
                directory = Path(stack.enter_context(as_directory()))
                verify_checkpoint(directory, part=part, parts=parts)
            except (DamagedCheckpointError, FileNotFoundError) as error:
                fault = str(error)
            fault = first_fault(fault)
            if fault is None:
                yield directory
                return
        passed_over = True
        LOGGER.warning("%s cannot be used (%s); trying the one before it", name, fault)
    if passed_over:
        LOGGER.warning("no checkpoint can be used; training from the start")
    yield None


def gathered(value: T) -> list[T]:
    """Every worker's value, by rank. A collective, which waits for those that still download what others have."""
    group = dist.new_group(backend="gloo", timeout=LONGEST_DOWNLOAD)
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    dist.destroy_process_group(group)
    return values


def first_fault(fault: str | None) -> str | None:
    """The first worker's fault that is not None, on every worker. A collective."""
    return next((one for one in gathered(fault) if one is not None), None)


@contextlib.contextmanager
def _ordinary_errors(what: str) -> Iterator[None]:
    """DCP's own exception is no `Exception`: handlers such as those of Ray's threads would let it vanish."""
    try:
        yield
    except CheckpointException as error:
        causes = "; ".join(f"worker {rank}: {failure[0]!r}" for rank, failure in error.failures.items())
        raise CheckpointError(f"{what} a checkpoint failed: {causes}") from error


def _local_bytes(state: Any) -> int:
    """Count the bytes of this worker's part of the tensors in a nested state."""
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes for tensor in tensors)


def _complete(optimizer: Optimizer) -> None:
    """Give weights that never had a gradient the state that AdamW begins with, since reading a checkpoint expects one
    of all; without a gradient they still stay as they are."""
    known: dict[str, torch.Tensor] = next(iter(optimizer.state.values()), {})
    for group in optimizer.param_groups if known else ():
        for weight in group["params"]:
            if weight not in optimizer.state:
                zeros = {name: torch.zeros_like(weight) for name in known if name != "step"}
                optimizer.state[weight] = {"step": torch.zeros_like(known["step"]), **zeros}


def _trained_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What a checkpoint holds; the tensors are the live ones. A tied parameter counts once."""
    unique: dict[int, tuple[str, torch.Tensor]] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        if parameter.requires_grad:
            unique.setdefault(id(parameter), (name, parameter.detach()))
    _complete(optimizer)
    return {"model": dict(unique.values()), "optimizer": get_optimizer_state_dict(model, optimizer)}
