"""Ray clusters of several nodes on one machine, which a drill starts and takes away."""

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from shortened_llm.config import DRIVER_RESOURCE
from tests.ray.processes import end_processes_of

PORT = 6599
START_SECONDS = 90
HEAD_RESOURCES = {DRIVER_RESOURCE: 4}
"""Trial drivers stay on the head, as they should where nodes come and go."""
CLOUD_FIELDS: dict[str, object] = {
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
"""What Ray's schema of an autoscaler's configuration asks for and nodes on this machine do not need."""
HEAD_ID = "f" * 51 + "00000"
"""Of a head with an autoscaler: that of the fake node provider."""


@dataclass(kw_only=True)
class Node:
    """One `ray start` that stays in the foreground, and all that it started."""

    process: subprocess.Popen
    address: str = "127.0.0.1"

    def crash(self) -> None:
        """SIGKILL every process of the node, as when its machine loses power."""
        end_tree(self.process.pid)
        self.process.wait()

    def runs(self, pid: int) -> bool:
        """Whether a process is one of this node's."""
        return any(parent.pid == self.process.pid for parent in psutil.Process(pid).parents())


@dataclass(kw_only=True)
class Nodes:
    """A cluster. Its head has no CPU: it runs what asks for none."""

    environment: dict[str, str]
    directory: str
    """Temporary directory of Ray: a short path, as Unix sockets lie below it."""
    head_address: str = "127.0.0.1"
    started: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.head_address}:{PORT}"

    def start(
        self, *arguments: str, address: str = "127.0.0.1", prefix: tuple[str, ...] = (), settings: dict | None = None
    ) -> Node:
        """Start a node and wait until it runs.

        Args:
            prefix: a command that runs another one, such as in a network of its own.
            settings: of its environment, beside the cluster's.
        """
        number = len(self.started)
        command = [
            *prefix, "ray", "start", "--block", "--disable-usage-stats", "--node-ip-address", address,
            "--dashboard-agent-listen-port", str(23500 + number), "--object-store-memory", str(128 * 2**20),
            *arguments,
        ]  # fmt: skip
        log = Path(self.directory) / f"node-{number}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env={**self.environment, **(settings or {})}, stdout=stream, stderr=stream
            )
        self.started.append(Node(process=process, address=address))
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return self.started[-1]

    def start_head(self, *arguments: str, num_cpus: int = 0, settings: dict | None = None) -> Node:
        # Each head has a directory of its own: Ray keeps the last one's session there.
        directory = tempfile.mkdtemp(prefix="h", dir=self.directory)
        return self.start(
            "--head", "--port", str(PORT), "--num-cpus", str(num_cpus), "--include-dashboard", "false",
            "--ray-client-server-port", "9911", "--temp-dir", directory,
            "--resources", json.dumps(HEAD_RESOURCES), *arguments,
            address=self.head_address, settings=settings,
        )  # fmt: skip

    def add(self, num_cpus: int, **how: object) -> Node:
        return self.start("--address", self.address, "--num-cpus", str(num_cpus), **how)  # type: ignore[arg-type]

    def node_of(self, pid: int) -> Node:
        """The node that runs a process."""
        (node,) = [node for node in self.started if node.process.poll() is None and node.runs(pid)]
        return node

    def announce_preemption(self, node_id: str, seconds: int) -> None:
        command = [
            "ray", "drain-node", "--address", self.address, "--node-id", node_id, "--reason",
            "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", str(seconds),
        ]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=60)

    def raylets(self) -> list[psutil.Process]:
        """Of all nodes that live, whoever started them."""
        return [one for one in psutil.process_iter() if one.name() == "raylet" and self.directory in _command(one)]

    def training_nodes(self) -> list[psutil.Process]:
        """Raylets of the nodes on which workers train now."""
        workers = [one for one in psutil.process_iter() if "RayTrainWorker" in _command(one)]
        parents = {parent.pid for worker in workers for parent in _parents(worker)}
        return [raylet for raylet in self.raylets() if raylet.pid in parents]

    def end(self) -> None:
        for node in reversed(self.started):
            node.crash()
        end_processes_of(self.directory)


@contextlib.contextmanager
def cluster(environment: dict[str, str], head_address: str = "127.0.0.1") -> Iterator[Nodes]:
    """A cluster without any node yet; its processes end with the context."""
    directory = tempfile.mkdtemp(prefix="rf", dir="/tmp")
    nodes = Nodes(environment=dict(environment), directory=directory, head_address=head_address)
    nodes.environment["RAY_ADDRESS"] = nodes.address
    try:
        yield nodes
    finally:
        nodes.end()
        shutil.rmtree(directory, ignore_errors=True)


class BarrenProvider(FakeMultiNodeProvider):
    """A cloud that has run out of machines."""

    def create_node_with_resources_and_labels(self, *_: object) -> None:
        raise RuntimeError("no capacity")


def start_autoscaling_head(
    nodes: Nodes,
    *,
    worker: dict[str, int],
    most: int,
    idle_minutes: float,
    head_cpus: int = 0,
    provider: str = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
) -> Node:
    """A head whose autoscaler starts nodes on this machine, from none up to `most`, and ends them when idle.

    Args:
        worker: resources of each node.
        provider: what starts the nodes.
    """
    types = {
        "ray.head.default": {"resources": {"CPU": head_cpus, **HEAD_RESOURCES}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {**worker, "object_store_memory": 128 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": most,
        },
    }
    config = {
        **CLOUD_FIELDS,
        "cluster_name": "drill",
        "max_workers": most,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            "type": "external",
            "module": provider,
            "gcs_address": nodes.address,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
    }
    path = Path(nodes.directory) / "autoscaling.json"
    path.write_text(json.dumps(config))
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    return nodes.start_head("--autoscaling-config", str(path), num_cpus=head_cpus, settings=settings)


def end_tree(pid: int) -> None:
    """SIGKILL a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for part in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                part.send_signal(signal.SIGKILL)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
        time.sleep(0.2)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.Error:
        return []
