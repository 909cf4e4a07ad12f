"""One Ray cluster for the session, with its own temporary directory, reachable by job submission."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    dashboard_url: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def token_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of every process that uses Ray: token authentication with a token of this session."""
    token = tmp_path_factory.mktemp("ray-token") / "token"
    token.write_text("0123456789abcdef" * 4)
    return {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture
def local_environment(token_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """For drivers that start Ray themselves, in a temporary directory of their own."""
    directory = tempfile.mkdtemp(prefix="rt", dir="/tmp")  # a short path: Unix sockets lie below it
    yield {**token_environment, "RAY_TMPDIR": directory}
    _end_processes_of(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(token_environment: dict[str, str], s3_server: S3Server) -> Iterator[Cluster]:
    """A head started as on a user's machine; its processes can use the S3 server."""
    directory = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    environment = {**token_environment, **s3_server.environment, "SHORTENED_LLM_CACHE": f"{directory}/files"}
    command = [
        "ray", "start", "--head", "--node-ip-address", "127.0.0.1", "--port", "6499", "--num-cpus", "2",
        "--object-store-memory", str(256 * 2**20), "--include-dashboard", "true", "--dashboard-host", "127.0.0.1",
        "--dashboard-port", "8299", "--dashboard-agent-listen-port", "52399", "--ray-client-server-port", "9901",
        "--temp-dir", directory, "--disable-usage-stats",
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    url = "http://127.0.0.1:8299"
    yield Cluster(dashboard_url=url, environment={**environment, "RAY_API_SERVER_ADDRESS": url})
    _end_processes_of(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _end_processes_of(directory: str) -> None:
    """End the processes of the cluster with this temporary directory, and no other."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        mine = [process for process in psutil.process_iter() if _belongs_to(process, directory)]
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs(mine, timeout=8)


def _belongs_to(process: psutil.Process, directory: str) -> bool:
    try:
        return any(directory in argument for argument in process.cmdline()) or (
            process.environ().get("RAY_TMPDIR") == directory
        )
    except psutil.Error:
        return False
