"""A pool that scores models on a running cluster: `python -m tests.ray.evaluation_driver ORDER.pickle`."""

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import ray

from shortened_llm.config import ResourcesConfig
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.evaluation.units import Unit
from shortened_llm.records import ModelRef, to_json
from shortened_llm.search.cluster.progress import Progress, ProgressLog
from shortened_llm.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the driver is to run."""

    models: tuple[ModelRef, ...]
    units: tuple[Unit, ...]
    store: Store
    resources: ResourcesConfig


class EveryLine:
    """Progress of which no line is replaced by the next."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, line: str | None) -> None:
        if line is not None:
            self._progress.note(line)

    def note(self, line: str) -> None:
        self._progress.note(line)


def main() -> None:
    order: Order = pickle.loads(Path(sys.argv[1]).read_bytes())
    ray.init(log_to_driver=False, logging_level="ERROR")
    with ProgressLog("test") as log:
        pool = EvaluationPool.start("test", order.store, order.resources, dtype="float32", batch_size=2, may_idle=True)
        progress = EveryLine(log.about("scores"))
        submitted = [pool.submit(model, order.units, progress) for model in order.models]
        for one in submitted:
            sys.stdout.write(f"\nscores {to_json(pool.result(one), indent=None)}\n")


if __name__ == "__main__":
    main()
