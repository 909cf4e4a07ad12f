"""One retraining job on a running cluster, as a trial starts it: `python -m tests.ray.driver ORDER.pickle`."""

import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import ray

from shortened_llm.config import ResourcesConfig
from shortened_llm.logs import about, setup_process
from shortened_llm.metrics import TrialState
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.launch import retrain
from shortened_llm.search.cluster.train_callbacks import StartCallback
from shortened_llm.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Said:
    """A line that the run posted, and where from."""

    pid: int
    node: str
    line: str


@dataclass(frozen=True, kw_only=True)
class LogFile:
    """Takes the run's lines from any process of this machine."""

    path: Path

    def __call__(self, line: str) -> None:
        node = ray.get_runtime_context().get_node_id()
        with self.path.open("a") as stream:
            stream.write(f"{os.getpid()} {node} {line}\n")

    def note(self, line: str) -> None:
        self(line)

    def wait(self, what: str, limit_seconds: float | None) -> None:
        self(f"waiting for {what}" + ("" if limit_seconds is None else f" (at most {limit_seconds:g} s)"))

    def enter(self, state: TrialState) -> None:
        self(f"state: {state}")

    def read(self) -> list[Said]:
        if not self.path.exists():
            return []
        parts = [line.split(" ", 2) for line in self.path.read_text().splitlines()]
        return [Said(pid=int(pid), node=node, line=line) for pid, node, line in parts]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the driver is to run."""

    job: RetrainingJob
    store: Store
    runs_url: str
    resources: ResourcesConfig
    log: LogFile


def main() -> None:
    order: Order = pickle.loads(Path(sys.argv[1]).read_bytes())
    ray.init(log_to_driver=False, logging_level="ERROR")
    setup_process()
    with about(order.log):
        retrained = retrain(
            order.job,
            order.store,
            runs_url=order.runs_url,
            resources=order.resources,
            max_failures=1,
            tokens_before=0,
            needs_files=True,
            callbacks=[StartCallback(order.resources, order.log)],
        )
    sys.stdout.write("\n" + " ".join(str(point.step) for point in retrained.history) + "\n")


if __name__ == "__main__":
    main()
