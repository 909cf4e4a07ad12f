"""Ray's list of a run's checkpoints, made to name what is there: read and written by Ray's own manager."""

import asyncio
import os
import shutil
from pathlib import Path

import pyarrow.fs
import pytest
import torch
from ray.train import Checkpoint, CheckpointConfig
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from torch import nn

from shortened_llm.retraining.checkpoint import Checkpointer
from shortened_llm.retraining.manifest import checkpoint_name
from shortened_llm.retraining.progress import RunProgress
from shortened_llm.retraining.run_directory import repair_run_directory
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete, exists, join, list_names, read_bytes, write_bytes

LIST = "checkpoint_manager_snapshot.json"


def upload_checkpoint(run_url: str, step: int) -> str:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpointer = Checkpointer({}, torch.device("cpu"))
    progress = RunProgress(step=step, seconds=0.0, history=())
    directory = checkpointer.save(model, optimizer, progress).wait()
    checkpointer.close()
    name = checkpoint_name(step, os.urandom(2).hex())
    upload_directory(directory, join(run_url, name))
    shutil.rmtree(directory)
    return name


def ray_manager(run_url: str) -> CheckpointManager:
    """As the controller of a Train run makes it; raises where Ray would refuse the directory."""
    parent, name = run_url.rsplit("/", 1)
    return CheckpointManager(
        CheckpointConfig(num_to_keep=2), StorageContext(storage_path=parent, experiment_dir_name=name)
    )


def ray_lists(run_url: str, names: list[str]) -> None:
    """Write the list as a run does that reports these checkpoints."""

    async def report() -> None:
        manager = ray_manager(run_url)
        fs, path = pyarrow.fs.FileSystem.from_uri(run_url)
        for name in names:
            checkpoint = Checkpoint(path=f"{path}/{name}", filesystem=fs)
            manager.register_checkpoint(_TrainingReport(checkpoint=checkpoint, metrics={"step": 1}, validation=False))

    asyncio.run(report())


def listed_by_ray(run_url: str) -> list[str]:
    async def read() -> list[str]:
        manager = ray_manager(run_url)
        return [Path(result.checkpoint.path).name for result in manager._checkpoint_results]

    return asyncio.run(read())


@pytest.fixture
def run(store: Store, process_group: None) -> tuple[str, list[str]]:
    """URL of a run with two checkpoints, and their names."""
    url = join(store.url, "train", "run")
    names = [upload_checkpoint(url, step) for step in (8, 16)]
    ray_lists(url, names)
    return url, names


def test_a_directory_in_order_stays_as_it_is(run: tuple[str, list[str]]) -> None:
    url, names = run
    before = read_bytes(join(url, LIST))
    assert repair_run_directory(url, num_to_keep=2) == []
    assert read_bytes(join(url, LIST)) == before
    assert listed_by_ray(url) == names
    assert repair_run_directory(join(url, "new"), num_to_keep=2) == []


@pytest.mark.parametrize("content", [b"", b'{"ray_version": "2.60', b"[]", b"\xff\xfe"])
def test_a_list_that_is_cut_short_is_written_anew(run: tuple[str, list[str]], content: bytes) -> None:
    url, names = run
    write_bytes(join(url, LIST), content)
    with pytest.raises((CheckpointManagerInitializationError, UnicodeDecodeError)):
        listed_by_ray(url)
    assert repair_run_directory(url, num_to_keep=2) == ["Ray's list of checkpoints is damaged"]
    assert listed_by_ray(url) == names


def test_a_listed_checkpoint_that_is_gone_is_forgotten(run: tuple[str, list[str]]) -> None:
    url, (older, newest) = run
    delete(join(url, newest))
    if "://" not in url:  # The S3 server keeps an empty directory, which Ray takes for the checkpoint.
        with pytest.raises(CheckpointManagerInitializationError, match="corrupted run directory"):
            listed_by_ray(url)
    assert repair_run_directory(url, num_to_keep=2)[0].startswith(f"{newest} is ")
    assert listed_by_ray(url) == [older]
    delete(join(url, older))
    assert repair_run_directory(url, num_to_keep=2)[0].startswith(f"{older} is ")
    assert not exists(join(url, LIST))
    assert listed_by_ray(url) == []


def test_a_half_uploaded_checkpoint_is_removed(run: tuple[str, list[str]]) -> None:
    url, (older, newest) = run
    delete(join(url, newest, "__0_0.distcp"))
    write_bytes(join(url, LIST), b"{")
    faults = repair_run_directory(url, num_to_keep=2)
    assert faults == [f"{newest} is not complete: __0_0.distcp is missing", "Ray's list of checkpoints is damaged"]
    assert listed_by_ray(url) == [older]
    assert not list_names(join(url, newest))


def test_a_complete_checkpoint_that_was_not_listed_yet_is_used(run: tuple[str, list[str]]) -> None:
    url, (older, newest) = run
    unlisted = upload_checkpoint(url, 24)
    assert repair_run_directory(url, num_to_keep=2) == []
    assert listed_by_ray(url) == [newest, unlisted]
    assert not list_names(join(url, older))
