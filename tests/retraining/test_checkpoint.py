"""Checkpoints without Ray: whole, of the right moment, refused when damaged, for any number of processes."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn

from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.checkpoint import (
    Checkpointer,
    CheckpointError,
    CheckpointMismatchError,
    PendingCheckpoint,
    load_checkpoint,
    newest_usable,
    verify_checkpoint,
)
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.manifest import DamagedCheckpointError
from shortened_llm.retraining.progress import RunProgress
from shortened_llm.retraining.train import train
from tests.conftest import MakeJob
from tests.retraining.conftest import Recorder

CPU = torch.device("cpu")
IDENTITY = {"model": {"kept_blocks": [0, 1]}, "data": "abc", "seed": 0}


def progress_at(step: int) -> RunProgress:
    return RunProgress(step=step, seconds=1.0, history=())


def small_run(*, frozen: bool = False) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """A model that has taken one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    model[0].requires_grad_(not frozen)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def write_small(directory: Path, at: int) -> Path:
    checkpointer = Checkpointer(IDENTITY, CPU)
    written = checkpointer.save(*small_run(), progress_at(at)).wait()
    checkpointer.close()
    return Path(shutil.move(written, directory))


# One process after another: 2, 1 and 2 of them.


Turn = tuple[int, Path | None, Path]
"""Processes, the checkpoint that they go on from, and where merged checkpoints are left, named by their step."""


def _train_by_turns(rank: int, turns: Sequence[Turn], job: RetrainingJob) -> None:
    """One process of as many as the largest turn has."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for processes, resume_from, kept in turns:
        if rank < processes:
            _train(rank, processes, job, resume_from, kept)


def _train(rank: int, processes: int, job: RetrainingJob, resume_from: Path | None, kept: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{kept}/rendezvous", rank=rank, world_size=processes)
    losses: dict[int, float] = {}

    class Keeper(Recorder):
        def report(
            self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None
        ) -> None:
            losses[point.step] = point.loss
            if checkpoint is not None:
                shutil.copytree(checkpoint.wait(), kept / str(point.step), dirs_exist_ok=True)
                shutil.rmtree(checkpoint.directory)

    train(job, device=CPU, resume_from=resume_from, host=Keeper())
    if rank == 0:
        (kept / "losses.json").write_text(json.dumps(losses))
    dist.destroy_process_group()


def _losses(kept: Path) -> dict[int, float]:
    """By step."""
    return {int(at): loss for at, loss in json.loads((kept / "losses.json").read_text()).items()}


def test_two_processes_then_one_then_two_equal_an_uninterrupted_run(make_job: MakeJob, tmp_path: Path) -> None:
    places = tmp_path / "straight", tmp_path / "one", tmp_path / "two"
    for place in places:
        place.mkdir()
    turns = (2, None, places[0]), (1, places[0] / "2", places[1]), (2, places[1] / "4", places[2])
    mp.spawn(_train_by_turns, args=(turns, make_job(checkpoint_tokens=2048)), nprocs=2)
    straight, one, two = (_losses(place) for place in places)
    assert (min(straight), min(one), min(two), max(two)) == (1, 3, 5, 8)
    resumed = {at: loss for at, loss in one.items() if at <= 4} | two
    assert resumed == pytest.approx({at: straight[at] for at in resumed}, rel=1e-5)
    for part in range(2):
        assert verify_checkpoint(tmp_path / "two" / "6", part=part, parts=2).step == 6


# What a checkpoint holds.


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_holds_the_moment_it_was_asked_for() -> None:
    """The next steps change the weights while it is being written, and the buffer of the first is used again."""
    checkpointer = Checkpointer(IDENTITY, CPU)
    model, optimizer = small_run()
    moments: list[tuple[Path, dict[str, torch.Tensor], torch.Tensor]] = []
    for at in range(3):
        gate = threading.Event()
        checkpointer._thread.submit(gate.wait)  # the write waits until the next step is done
        pending = checkpointer.save(model, optimizer, progress_at(at))
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        momentum = optimizer.state[model[0].weight]["exp_avg"].clone()
        step(model, optimizer)
        gate.set()
        moments.append((pending.directory, weights, momentum))
    checkpointer.close()
    for at, (directory, weights, momentum) in enumerate(moments):
        other, other_optimizer = small_run()
        assert load_checkpoint(directory, other, other_optimizer, IDENTITY) == progress_at(at)
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, weights[name])
        assert torch.equal(other_optimizer.state[other[0].weight]["exp_avg"], momentum)
        shutil.rmtree(directory)


@pytest.mark.usefixtures("process_group")
def test_frozen_weights_are_not_written_and_keep_what_was_loaded(tmp_path: Path) -> None:
    checkpointer = Checkpointer(IDENTITY, CPU)
    model, optimizer = small_run(frozen=True)
    directory = checkpointer.save(model, optimizer, progress_at(1)).wait()
    checkpointer.close()
    names = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
    assert {name for name in names if name.startswith("model.")} == {"model.1.weight", "model.1.bias"}
    assert not [name for name in names if name.startswith("optimizer.state.0.")]
    other, other_optimizer = small_run(frozen=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7.0)
    load_checkpoint(directory, other, other_optimizer, IDENTITY)
    assert (other[0].weight == 7.0).all()
    assert torch.equal(other[1].weight, model[1].weight)


@pytest.mark.usefixtures("process_group")
def test_a_weight_that_never_had_a_gradient_is_resumed_and_left_alone(tmp_path: Path) -> None:
    """As those of DeepSeek's indexer."""

    def model_with_idle_weight() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
        model.register_parameter("idle", nn.Parameter(torch.ones(4)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        step(model, optimizer)
        return model, optimizer

    checkpointer = Checkpointer(IDENTITY, CPU)
    written = checkpointer.save(*model_with_idle_weight(), progress_at(1)).wait()
    checkpointer.close()
    model, optimizer = model_with_idle_weight()
    assert load_checkpoint(Path(shutil.move(written, tmp_path / "kept")), model, optimizer, IDENTITY) == progress_at(1)
    step(model, optimizer)
    assert torch.equal(model.idle, torch.ones(4))


@pytest.mark.usefixtures("process_group")
def test_a_tied_weight_is_written_once() -> None:
    model, optimizer = small_run()
    model.append(nn.Linear(64, 64))
    model[2].weight = model[0].weight
    checkpointer = Checkpointer(IDENTITY, CPU)
    directory = checkpointer.save(model, optimizer, progress_at(1)).wait()
    checkpointer.close()
    names = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
    assert "model.0.weight" in names
    assert "model.2.weight" not in names


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_of_another_job_says_what_differs(tmp_path: Path) -> None:
    directory = write_small(tmp_path / "checkpoint", 1)
    other = {**IDENTITY, "model": {"kept_blocks": [0, 2]}, "steps": 8}
    with pytest.raises(CheckpointMismatchError) as caught:
        load_checkpoint(directory, *small_run(), other)
    assert "model.kept_blocks was [0, 1], is [0, 2]; steps was None, is 8" in str(caught.value)
    assert "data" not in str(caught.value).split("another run")[1]


# Failures.


@contextlib.contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """Writing more fails with an OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("process_group")
def test_a_failed_write_surfaces_where_it_is_awaited_and_at_the_next_save() -> None:
    checkpointer = Checkpointer(IDENTITY, CPU)
    model, optimizer = small_run()
    with no_file_above(1000):
        pending = checkpointer.save(model, optimizer, progress_at(1))
        with pytest.raises(CheckpointError, match="File too large"):
            pending.wait()
    assert not pending.directory.exists()
    with pytest.raises(CheckpointError, match="File too large"):
        checkpointer.save(model, optimizer, progress_at(2))


def test_the_disk_space_of_a_killed_process_is_freed(tmp_path: Path) -> None:
    """By the next process on the node; a process that lives keeps its own."""
    code = (
        "import signal, sys\n"
        "from shortened_llm.storage.scratch import scratch_directory\n"
        "(scratch_directory() / 'shards').write_bytes(bytes(1000))\n"
        "print(flush=True)\n"
        "signal.pause()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    live = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    killed = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    for process in (live, killed):
        assert process.stdout is not None
        process.stdout.readline()
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.glob("*/shards"))) == 2
    ends = "from shortened_llm.storage.scratch import scratch_directory; scratch_directory()"
    subprocess.run([sys.executable, "-c", ends], env=environment, check=True)
    assert len(list(tmp_path.glob("*/shards"))) == 1
    assert len(list(tmp_path.iterdir())) == 2
    live.kill()
    live.wait()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shards gone": (lambda d: (d / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    "shards cut": (lambda d: cut(d / "__0_0.distcp"), "__0_0.distcp has"),
    "shards changed": (lambda d: flip_a_bit(d / "__0_0.distcp"), "__0_0.distcp does not have the checksum"),
    "index gone": (lambda d: (d / ".metadata").unlink(), r"\.metadata is missing"),
    "manifest gone": (
        lambda d: (d / "manifest_00000.json").unlink(),
        r"manifest_00000\.json is missing: worker 0 of 1",
    ),
    "manifest cut": (lambda d: cut(d / "manifest_00000.json"), r"manifest_00000\.json is damaged"),
    "progress gone": (lambda d: (d / "progress.json").unlink(), r"progress\.json is missing"),
    "progress cut": (lambda d: cut(d / "progress.json"), r"progress\.json is damaged"),
    "progress changed": (
        lambda d: (d / "progress.json").write_text((d / "progress.json").read_text().replace('"step": 2', '"step": 9')),
        r"progress\.json does not have the checksum",
    ),
    "all gone": (shutil.rmtree, r"progress\.json is missing"),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: str, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    older, newest = write_small(tmp_path / "older", 1), write_small(tmp_path / "newest", 2)
    candidates = [(path.name, lambda path=path: contextlib.nullcontext(str(path))) for path in (newest, older)]
    with newest_usable(candidates, part=0, parts=1) as directory:
        assert directory == newest
    assert logged.messages == []
    act, reason = DAMAGES[damage]
    act(newest)
    with pytest.raises(DamagedCheckpointError, match=reason):
        verify_checkpoint(newest)
    with newest_usable(candidates, part=0, parts=1) as directory:
        assert directory == older
        assert load_checkpoint(directory, *small_run(), IDENTITY).step == 1
    assert len(logged.messages) == 1
    assert logged.messages[0].startswith("newest cannot be used (")
    shutil.rmtree(older)
    with newest_usable(candidates, part=0, parts=1) as directory:
        assert directory is None
    assert logged.messages[-1] == "no checkpoint can be used; training from the start"
