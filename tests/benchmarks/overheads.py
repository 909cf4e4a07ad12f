"""What a search costs beside its arithmetic: `python -m tests.benchmarks.overheads`, on the tiny model.

- submission: from `jobs.submit` to the first training step on a warm cluster, and the seconds of a trial that are not
  training, one trial at a time and two.
- queue: processor time and memory of a driver with 200 trials, all but one waiting.
- nodes: 8 nodes of 8 logical GPUs: the placement of 16 trials of 4, two of which really train, on CPUs.

Needs `python -m jobs.assets tiny`. Clusters have directories and ports of their own, and end with it.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil

from tests.ray.processes import end_processes_of

CONFIG = "jobs/configs/tiny.yaml"
GCS_PORT, DASHBOARD_PORT = 6699, 8399
PARTS = ("submission", "queue", "nodes")
QUEUED = 200
WATCHED_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for part in options.only:
        with cluster() as (environment, directory):
            figures[part] = {"submission": submission, "queue": queue, "nodes": nodes}[part](environment, directory)
        for name, value in figures[part].items():
            print(f"{part}: {name}: {value:.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


@contextlib.contextmanager
def cluster() -> Iterator[tuple[dict[str, str], str]]:
    """The environment and directory of a cluster that is still to be started; what was started there is ended."""
    directory = tempfile.mkdtemp(prefix="ro", dir="/tmp")
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": directory,
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    try:
        yield environment, directory
    finally:
        end_processes_of(directory)
        shutil.rmtree(directory, ignore_errors=True)


def start_node(environment: dict[str, str], *arguments: str) -> None:
    command = ["ray", "start", "--disable-usage-stats", "--node-ip-address", "127.0.0.1", "--object-store-memory"]
    command += [str(128 * 2**20), *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)


def start_head(environment: dict[str, str], directory: str, *arguments: str) -> None:
    start_node(
        environment, "--head", "--port", str(GCS_PORT), "--temp-dir", directory, "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(DASHBOARD_PORT), "--dashboard-agent-listen-port", "23600",
        "--ray-client-server-port", "9921", *arguments,
    )  # fmt: skip


def submission(environment: dict[str, str], directory: str) -> dict[str, float]:
    start_head(environment, directory, "--num-cpus", "2")
    figures = {}
    for concurrent in (1, 2):
        command = [
            sys.executable, "-m", "jobs.submit", CONFIG, "--address", f"http://127.0.0.1:{DASHBOARD_PORT}",
            "--storage.url", f"{directory}/results-{concurrent}", "--resources.workers", "1",
            "--search.max_concurrent_trials", str(concurrent), "--pruning.criteria", '["magnitude"]',
            "--search.ratios", "[0.25, 0.375, 0.5, 0.625]",
        ]  # fmt: skip
        started = time.time()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=True)
        lines = re.findall(r"^(\d\d:\d\d:\d\d) (.*)$", done.stdout, re.MULTILINE)
        at = [(seconds_since(started, clock), line) for clock, line in lines]
        first_step = next(seconds for seconds, line in at if re.search(r"step \d+/", line))
        trials = [line for _, line in at if line.startswith("trial")]
        assert trials
        result = json.loads(Path(f"{directory}/results-{concurrent}/experiments/tiny/report/trials.json").read_text())
        seconds = [trial["result"]["seconds"] for trial in result["trials"]]
        training = [sum(run["seconds"] for run in trial["result"]["runs"]) for trial in result["trials"]]
        figures[f"seconds from submission to the first step shown, {concurrent} at a time"] = first_step
        figures[f"seconds of a trial, {concurrent} at a time"] = sum(seconds) / len(seconds)
        figures[f"of which training, {concurrent} at a time"] = sum(training) / len(training)
        figures[f"seconds of the whole job, {concurrent} at a time"] = time.time() - started
    return figures


def seconds_since(started: float, clock: str) -> float:
    """From a moment to a clock time of the same day or the next, in whole seconds."""
    then = datetime.fromtimestamp(started)
    at = datetime.combine(then.date(), datetime.strptime(clock, "%H:%M:%S").time())
    return (at - then).total_seconds() % 86400


def queue(environment: dict[str, str], directory: str) -> dict[str, float]:
    """200 trials, one at a time; watched while the first ones run."""
    start_head(environment, directory, "--num-cpus", "2")
    rates = [f"{1e-4 * (1 + index / 100):.3e}" for index in range(QUEUED // 2)]
    command = [
        sys.executable, "-m", "jobs.search", CONFIG, "--storage.url", f"{directory}/results",
        "--pruning.criteria", '["magnitude"]', "--retraining.cpt.learning_rate", f"[{', '.join(rates)}]",
    ]  # fmt: skip
    with Path(directory, "search.log").open("wb") as log:
        driver = subprocess.Popen(
            command, env={**environment, "RAY_ADDRESS": f"127.0.0.1:{GCS_PORT}"}, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 300
    while "starting training workers" not in Path(directory, "search.log").read_text():
        assert driver.poll() is None, Path(directory, "search.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    watched = psutil.Process(driver.pid)
    before, started = watched.cpu_times(), time.monotonic()
    time.sleep(WATCHED_SECONDS)
    after = watched.cpu_times()
    busy = (after.user + after.system - before.user - before.system) / (time.monotonic() - started)
    figures = {"trials": QUEUED, "driver's share of a core": busy, "driver's MiB": watched.memory_info().rss / 2**20}
    stopped = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    driver.wait(timeout=60)
    return figures | {"seconds to stop": time.monotonic() - stopped}


def nodes(environment: dict[str, str], directory: str) -> dict[str, float]:
    """The head drives trials and does nothing else; eight nodes hold GPUs that are only numbers."""
    start_head(environment, directory, "--num-cpus", "0", "--resources", '{"trial_driver": 16}')
    started = time.monotonic()
    for number in range(8):
        start_node(
            environment, "--address", f"127.0.0.1:{GCS_PORT}", "--num-cpus", "16", "--num-gpus", "8",
            "--dashboard-agent-listen-port", str(23601 + number),
        )  # fmt: skip
    figures = {"seconds to start 8 nodes": time.monotonic() - started}
    placed = subprocess.run(
        [sys.executable, "-c", PLACE],
        env={**environment, "RAY_ADDRESS": f"127.0.0.1:{GCS_PORT}"},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    figures["seconds to place 16 trials of 4 GPUs"] = float(placed.stdout.split()[-1])
    started = time.monotonic()
    ran = subprocess.run(
        [
            sys.executable, "-m", "jobs.search", CONFIG, "--storage.url", f"{directory}/results",
            "--pruning.criteria", '["magnitude"]', "--search.max_concurrent_trials", "2",
            "--resources.workers", "4", "--resources.cpus_per_worker", "1", "--resources.gpus_per_worker", "1",
        ],
        env={**environment, "RAY_ADDRESS": f"127.0.0.1:{GCS_PORT}"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return figures | {"seconds of a search with 2 trials of 4 GPUs at a time": time.monotonic() - started}


PLACE = """
import time, ray
ray.init(log_to_driver=False, logging_level="ERROR")
started = time.monotonic()
groups = [ray.util.placement_group([{"CPU": 1, "GPU": 1}] * 4, strategy="STRICT_PACK") for _ in range(16)]
ray.get([group.ready() for group in groups], timeout=120)
print(time.monotonic() - started)
"""


if __name__ == "__main__":
    main()
