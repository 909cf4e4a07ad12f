"""Records the grid that `replay` reads: `python -m tests.benchmarks.search.record`, about half an hour on 2 cores.

Every run is trained from its start in this process; what a rung shares with the next one is counted by the replay.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch.distributed as dist

from jobs.assets import DEFAULT_DIRECTORY, DIRECTORY_VARIABLE
from shortened_llm.records import TrialResult
from shortened_llm.storage.layout import TRIALS
from shortened_llm.storage.store import Store
from tests.benchmarks.search.grid import RECORDED, RUNGS, Point, grid_config, write_points
from tests.search.pipeline import Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=RECORDED, metavar="FILE")
    to = parser.parse_args().to
    assets = Path(os.environ.get(DIRECTORY_VARIABLE, DEFAULT_DIRECTORY)).expanduser() / "tiny"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as storage:
        pipeline = Pipeline(grid_config(assets, storage), Store.at(storage))
        for candidate, spec in enumerate(pipeline.specs):
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
            write_points(points, to)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
