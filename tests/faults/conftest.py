"""A Ray cluster whose nodes a test starts and takes away."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.ray.processes import end_processes_of

ADDRESS = "127.0.0.1:6599"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@dataclass
class Nodes:
    """Each node is one `ray start` that stays in the foreground."""

    environment: dict[str, str]
    directory: str
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *arguments: str) -> None:
        number = len(self.started)
        command = [
            "ray", "start", "--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1",
            "--dashboard-agent-listen-port", str(52500 + number), "--object-store-memory", str(128 * 2**20),
            *arguments,
        ]  # fmt: skip
        log = Path(self.directory) / f"node-{number}.log"
        with log.open("wb") as stream:
            self.started.append(subprocess.Popen(command, env=self.environment, stdout=stream, stderr=stream))
        while "Ray runtime started" not in log.read_text():
            assert self.started[-1].poll() is None, log.read_text()
            time.sleep(0.2)

    def start_head(self) -> None:
        """It runs no training: it has a tenth of a CPU."""
        self.start(
            "--head", "--port", ADDRESS.split(":")[1], "--num-cpus", "0", "--include-dashboard", "false",
            "--ray-client-server-port", "9911", "--temp-dir", self.directory,
        )  # fmt: skip

    def add(self, num_cpus: int) -> None:
        self.start("--address", ADDRESS, "--num-cpus", str(num_cpus))

    def announce_preemption(self, node_id: str, seconds: int) -> None:
        command = [
            "ray", "drain-node", "--address", ADDRESS, "--node-id", node_id, "--reason",
            "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", str(seconds),
        ]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=60)

    def end(self) -> None:
        for process in reversed(self.started):
            for part in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    os.kill(part.pid, signal.SIGKILL)
            process.wait()
        end_processes_of(self.directory)


@pytest.fixture
def nodes(token_environment: dict[str, str]) -> Iterator[Nodes]:
    directory = tempfile.mkdtemp(prefix="rf", dir="/tmp")  # a short path: Unix sockets lie below it
    cluster = Nodes({**token_environment, "RAY_ADDRESS": ADDRESS}, directory)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(directory, ignore_errors=True)
