"""A run that loses a training worker."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shortened_llm.config import ResourcesConfig
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.storage.store import Store
from tests.conftest import MakeJob
from tests.ray.conftest import ROOT, Cluster
from tests.ray.driver import LogFile, Order
from tests.ray.test_search import TIMEOUT, wait_for


def start_driver(order: Order, directory: Path, environment: dict[str, str]) -> subprocess.Popen:
    (directory / "order.pickle").write_bytes(pickle.dumps(order))
    with (directory / "errors.log").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.ray.driver", str(directory / "order.pickle")],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip


def order_of(job: RetrainingJob, directory: Path, resources: dict) -> Order:
    return Order(
        job=job,
        store=Store.at(str(directory / "results")),
        runs_url=str(directory / "train"),
        resources=ResourcesConfig(**resources),
        log=LogFile(path=directory / "said.log"),
    )


def steps_of(driver: subprocess.Popen, directory: Path) -> list[int]:
    """Steps in the history of the finished run."""
    output, _ = driver.communicate(timeout=TIMEOUT)
    assert driver.returncode == 0, (directory / "errors.log").read_text()
    *_, steps = (line for line in output.splitlines() if line.replace(" ", "").isdigit())  # Ray prints around it
    return [int(step) for step in steps.split()]


def listed(order: Order) -> int:
    """Checkpoints that Ray would resume from."""
    snapshot = Path(order.runs_url) / order.job.run.name / "checkpoint_manager_snapshot.json"
    return snapshot.read_text().count('"checkpoint_0') if snapshot.exists() else 0


@pytest.mark.timeout(600)
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(
    make_job: MakeJob, tmp_path: Path, cluster: Cluster
) -> None:
    resources = {"workers": 2, "cpus_per_worker": 0.5}
    order = order_of(make_job(tokens=98_304, checkpoint_tokens=16_384), tmp_path, resources)
    driver = start_driver(order, tmp_path, {**cluster.environment, "RAY_ADDRESS": "127.0.0.1:6499"})
    wait_for(lambda: listed(order), driver, "checkpoint")
    killed = order.log.read()[-1].pid
    os.kill(killed, signal.SIGKILL)
    assert steps_of(driver, tmp_path)[-1] == 96
    said = order.log.read()
    (resumed,) = [one for one in said if one.line.startswith("resuming from a checkpoint at step")]
    assert resumed.pid != killed
    assert int(resumed.line.split()[-1]) % 16 == 0
    told = [one.line for one in said if one.line.startswith(("waiting for", "started", "state"))]
    assert told == 2 * [
        "waiting for 2 worker(s) x {CPU: 0.5} (at most 1800 s)", "state: waiting",
        "started 2 worker(s)", "state: training",
    ]  # fmt: skip
    assert not list(Path(order.runs_url).iterdir()), "checkpoints of the finished run were left"
