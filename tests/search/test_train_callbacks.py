"""What the hooks of Ray Train's controller say; tests/ray/test_retraining.py shows that it calls them in this order."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from shortened_llm.config import ResourcesConfig
from shortened_llm.metrics import TrialState
from shortened_llm.search.cluster.train_callbacks import StartCallback

RETRY, RAISE = SimpleNamespace(name="RETRY"), SimpleNamespace(name="RAISE")


@dataclass
class Said:
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def wait(self, what: str, limit_seconds: float | None) -> None:
        self.lines.append(f"{what} within {limit_seconds and round(limit_seconds)}")

    def enter(self, state: TrialState) -> None:
        self.lines.append(state)


def group(count: int) -> SimpleNamespace:
    return SimpleNamespace(
        num_workers=count, resources_per_worker={"CPU": 4, "GPU": 1}, get_workers=lambda: [0] * count
    )


def test_a_group_without_room_is_asked_for_again() -> None:
    said = Said()
    callback = StartCallback(ResourcesConfig(workers=(2, 2), node_wait_seconds=60), said)
    callback.after_controller_start(None)
    callback.before_worker_group_start(group(2))
    callback.before_controller_execute_failure_decision(RETRY)
    callback.before_worker_group_start(group(2))
    callback.after_worker_group_start(group(2))
    callback.before_controller_execute_failure_decision(RETRY)
    callback.before_worker_group_start(group(2))
    workers = "2 worker(s) x {CPU: 4, GPU: 1}"
    assert said.lines == [
        f"{workers} within 60", "waiting", f"{workers}, attempt 2 within 60", "waiting",
        "started 2 worker(s)", "training", f"{workers} within 60", "waiting",
    ]  # fmt: skip


def test_a_range_of_workers_waits_for_the_fewest() -> None:
    said = Said()
    callback = StartCallback(ResourcesConfig(workers=(1, 4), gpus_per_worker=1), said)
    callback.after_controller_start(None)
    callback.before_worker_group_start(group(3))
    callback.after_worker_group_start(group(3))
    callback.before_controller_execute_failure_decision(RETRY)
    callback.before_controller_execute_failure_decision(RAISE)
    fewest = "at least 1 worker(s) x {CPU: 1, GPU: 1} within None"
    assert said.lines == [
        fewest, "waiting", "3 worker(s) x {CPU: 4, GPU: 1} within 1800", "waiting",
        "started 3 worker(s)", "training", fewest, "waiting",
    ]  # fmt: skip
