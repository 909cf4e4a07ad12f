"""Which failures to start are tried again, and how often."""

import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from ray.train import ControllerError, RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import (
    CheckpointManagerInitializationError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)

from shortened_llm.config import ResourcesConfig
from shortened_llm.records import RetrainedModel
from shortened_llm.retraining import launch
from shortened_llm.retraining.export import export_sharded, write_run
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.launch import NodesMissingError, _fit, _trainer, retrain
from shortened_llm.retraining.train import train
from shortened_llm.storage.store import Store
from tests.conftest import MakeJob
from tests.retraining.conftest import Recorder

LOST = WorkerGroupStartupFailedError("a node died")


class Attempts:
    """A trainer whose attempts fail in turn, then succeed."""

    def __init__(self, failures: Iterable[Exception]) -> None:
        self._failures = iter(failures)
        self.made = 0

    def fit(self) -> None:
        self.made += 1
        if (failure := next(self._failures, None)) is not None:
            raise ControllerError(failure)


def missing(num_workers: int) -> Exception:
    return WorkerGroupStartupTimeoutError(num_workers=num_workers)


def fit(failures: Iterable[Exception], *, workers: tuple[int, int] = (2, 2), max_failures: int = 2) -> int:
    """Attempts until one succeeded."""
    attempts = Attempts(failures)
    _fit(attempts, ResourcesConfig(workers=workers), max_failures)  # type: ignore[arg-type]
    return attempts.made


def test_workers_lost_while_they_start_are_tried_again_so_often() -> None:
    assert fit([LOST, LOST]) == 3
    with pytest.raises(ControllerError, match="a node died"):
        fit([LOST, LOST, LOST])


def test_nodes_are_awaited_once() -> None:
    with pytest.raises(NodesMissingError, match=r"no room for 2 worker\(s\) of 1 CPU .*node_wait_seconds"):
        fit([missing(2)])


def test_a_range_of_workers_takes_what_there_is_by_then() -> None:
    assert fit([missing(4), missing(3)], workers=(2, 4)) == 3
    with pytest.raises(NodesMissingError, match="for 2 worker"):
        fit([missing(4), missing(2)], workers=(2, 4))
    with pytest.raises(NodesMissingError, match="for 4 worker"):
        fit([missing(4)] * 3, workers=(2, 4))


def test_what_would_only_fail_again_is_not_tried_again() -> None:
    with pytest.raises(ControllerError, match="no such storage"):
        fit([CheckpointManagerInitializationError("no such storage")])


def test_ctrl_c_stays_the_driver_s(tmp_path: Path) -> None:
    """Ray's own handler stays when its run has ended, and swallows what the lease sends."""
    trainer = _trainer({}, RunConfig(storage_path=str(tmp_path)), ResourcesConfig())
    before = signal.getsignal(signal.SIGINT)
    TorchTrainer._register_sigint_handler(trainer, None)  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) is not before, "Ray's registers one"
    signal.signal(signal.SIGINT, before)
    trainer._register_sigint_handler(None)  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) is before


def run(job: RetrainingJob, store: Store, directory: Path) -> RetrainedModel:
    return retrain(
        job, store, runs_url=str(directory), resources=ResourcesConfig(), max_failures=0, tokens_before=0,
        needs_files=True, callbacks=[],
    )  # fmt: skip


@pytest.mark.usefixtures("process_group")
def test_a_run_that_is_lost_behind_its_record_is_done(
    make_job: MakeJob, local_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tokens=1024)
    counts = tmp_path / job.run.name / "beginnings.json"
    counts.parent.mkdir()
    counts.touch()

    def lost(*_: object) -> None:
        raise RuntimeError("lost")

    def lost_at_the_end(*_: object) -> None:
        model, progress = train(job, device=torch.device("cpu"), resume_from=None, host=Recorder())
        exported = export_sharded(model, job, local_store, rank=0)
        assert exported is not None
        write_run(job, exported, progress, local_store)
        lost()

    monkeypatch.setattr(launch, "_fit", lost)
    with pytest.raises(RuntimeError, match="lost"):
        run(job, local_store, tmp_path)
    assert not counts.exists(), "the same command has as many attempts again"
    monkeypatch.setattr(launch, "_fit", lost_at_the_end)
    assert run(job, local_store, tmp_path).tokens == 1024
