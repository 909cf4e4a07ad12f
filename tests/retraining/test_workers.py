"""However many workers there are, and however they share the model, the training is the same."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.train import train
from tests.conftest import MakeJob
from tests.retraining.conftest import Recorder

Layout = tuple[int, int | None]
"""Workers, and how many of them share a copy of the model."""


def _train_by_turns(rank: int, layouts: Sequence[Layout], job: RetrainingJob, directory: Path) -> None:
    """One process of as many as the largest layout has."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for workers, shard_group in layouts:
        if rank < workers:
            _train(rank, workers, shard_group, job, directory)


def _train(rank: int, workers: int, shard_group: int | None, job: RetrainingJob, directory: Path) -> None:
    rendezvous = f"file://{directory}/rendezvous-{workers}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    recorder = Recorder()
    model, _ = train(job, device=torch.device("cpu"), resume_from=None, host=recorder, shard_group=shard_group)
    largest = max(parameter.to_local().numel() for parameter in model.parameters())
    if rank == 0:
        numbers = [(p.loss, p.gradient_norm, p.tokens, p.validation_loss) for p in recorder.points]
        (directory / f"{workers}.json").write_text(json.dumps({"points": numbers, "largest": largest}))
    dist.destroy_process_group()


@pytest.mark.parametrize("method", ["cpt", "distill"])
def test_losses_do_not_depend_on_the_workers(make_job: MakeJob, tmp_path: Path, method: str) -> None:
    """One; three, between which eight sequences do not divide; four, in two copies of the model that each two share."""
    job = make_job(method, micro_batch_size=2, tokens=4096, cpt={"learning_rate": 3e-4})
    layouts: list[Layout] = [(1, None), (3, None), (4, 2)] if method == "cpt" else [(1, None), (2, None)]
    mp.spawn(_train_by_turns, args=(layouts, job, tmp_path), nprocs=max(workers for workers, _ in layouts))
    found = {workers: json.loads((tmp_path / f"{workers}.json").read_text()) for workers, _ in layouts}
    for workers in list(found)[1:]:
        for ours, alone in zip(found[workers]["points"], found[1]["points"], strict=True):
            assert ours == pytest.approx(alone, rel=2e-5)
    if method == "cpt":
        assert found[4]["largest"] == found[1]["largest"] // 2
        assert found[3]["largest"] < found[4]["largest"]
