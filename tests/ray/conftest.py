"""One Ray cluster for the session, with its own temporary directory, reachable by job submission."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ray.processes import end_processes_of
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    directory: Path
    """Of sessions, with their logs."""
    dashboard_url: str
    environment: dict[str, str]


@pytest.fixture
def local_environment(token_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """For drivers that start Ray themselves, in a temporary directory of their own."""
    directory = tempfile.mkdtemp(prefix="rt", dir="/tmp")  # a short path: Unix sockets lie below it
    yield {**token_environment, "RAY_TMPDIR": directory}
    end_processes_of(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(token_environment: dict[str, str], s3_server: S3Server) -> Iterator[Cluster]:
    """A head started as on a user's machine; its processes can use the S3 server."""
    directory = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    environment = {
        **token_environment,
        **s3_server.environment,
        "SHORTENED_LLM_CACHE": f"{directory}/files",
        # `ray start` would replace the loopback address by the host's own, were it to expect other nodes.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_metrics_report_interval_ms": "1000",  # of 10 s: a tiny trial is over in that
    }
    command = [
        "ray", "start", "--head", "--node-ip-address", "127.0.0.1", "--port", "6499", "--num-cpus", "2",
        "--object-store-memory", str(256 * 2**20), "--include-dashboard", "true", "--dashboard-host", "127.0.0.1",
        "--dashboard-port", "8299", "--dashboard-agent-listen-port", "23399", "--ray-client-server-port", "9901",
        "--temp-dir", directory, "--disable-usage-stats",
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    url = "http://127.0.0.1:8299"
    yield Cluster(
        directory=Path(directory), dashboard_url=url, environment={**environment, "RAY_API_SERVER_ADDRESS": url}
    )
    end_processes_of(directory)
    shutil.rmtree(directory, ignore_errors=True)
