"""Records a grid that `replay` reads: `python -m tests.benchmarks.search.record NAME`, an hour or so on 2 cores.

Trials run in this process. A rung goes on from the state before the decay of the rung below, as the product's do.
What is recorded is written after each candidate, and a recording that was stopped goes on from there.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.assets import DEFAULT_DIRECTORY, DIRECTORY_VARIABLE
from shortened_llm.config import ExperimentConfig
from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.records import RetrainedModel, TrainingPoint, TrialResult
from shortened_llm.retraining.checkpoint import PendingCheckpoint
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.stable import keeps_stable
from shortened_llm.retraining.train import train
from shortened_llm.storage.layout import RETRAINED, TRIALS
from shortened_llm.storage.store import Store
from tests.benchmarks.search.grid import GRIDS, RUNGS, Point, grid_config, read_points, recorded, write_points
from tests.search.pipeline import Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--to", type=Path, metavar="FILE", help="instead of the file that is replayed")
    arguments = parser.parse_args()
    to = arguments.to or recorded(arguments.grid)
    quiet_libraries()
    prepare_cpu(fair_threads(1))
    assets = Path(os.environ.get(DIRECTORY_VARIABLE, DEFAULT_DIRECTORY)).expanduser()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    points = read_points(to) if to.exists() else []
    known = {point.candidate for point in points}
    with tempfile.TemporaryDirectory() as storage:
        pipeline = Continuing(grid_config(arguments.grid, assets, storage), Store.at(storage))
        for candidate, spec in enumerate(pipeline.specs):
            if candidate in known:
                continue
            for rung in RUNGS:
                at_rung = pipeline.space.at_rung(spec, rung)
                pipeline.trial(at_rung)
                result = pipeline.store.read(TRIALS, at_rung.fingerprint, TrialResult)
                assert result is not None
                (score,) = result.after.perplexity
                points.append(
                    Point(
                        candidate=candidate, target=spec.plan.size.blocks, name=spec.name, rung=rung,
                        tokens=result.tokens, seconds=result.training_seconds,
                        document_nll=score.document_nll, document_predictions=score.document_predictions,
                    )
                )  # fmt: skip
                print(f"{candidate + 1}/{len(pipeline.specs)} {at_rung.name}: {points[-1].loss:.4f}", flush=True)
            pipeline.forget()
            write_points(points, to)
    dist.destroy_process_group()


class Continuing(Pipeline):
    """A pipeline whose runs go on from the last one where they share its beginning."""

    def __init__(self, config: ExperimentConfig, store: Store) -> None:
        super().__init__(config, store)
        self._stable: tuple[str, Path] | None = None

    def run(self, job: RetrainingJob) -> RetrainedModel:
        job = replace(job, placement=job.placement.model_copy(update={"keep_stable_checkpoint": True}))
        begin = self._stable[1] if self._stable and self._stable[0] == job.run.stable_fingerprint else None
        host = _Keeper(job)
        model, progress = train(job, device=torch.device("cpu"), resume_from=begin, host=host)
        self._forget_state()
        assert host.stable is not None
        self._stable = job.run.stable_fingerprint, host.stable
        return self.written(job, model, progress)

    def forget(self) -> None:
        """Delete the state and the models of a candidate that needs no more training."""
        self._forget_state()
        shutil.rmtree(Path(self.store.url) / RETRAINED)

    def _forget_state(self) -> None:
        if self._stable:
            shutil.rmtree(self._stable[1])
        self._stable = None


class _Keeper:
    """A host that keeps the state before the decay."""

    def __init__(self, job: RetrainingJob) -> None:
        self._job = job
        self.stable: Path | None = None

    def report(self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None) -> None:
        if checkpoint is None:
            return
        directory = checkpoint.wait()
        if keeps_stable(self._job, point.step):
            self.stable = directory
        else:
            shutil.rmtree(directory)

    def preempted(self) -> bool:
        return False


if __name__ == "__main__":
    main()
