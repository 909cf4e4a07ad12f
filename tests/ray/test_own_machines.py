"""The scripts for machines of one's own, run on two nodes: network namespaces that a bridge joins."""

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.faults.network import Link, bridged, why_impossible
from tests.ray.conftest import ROOT

# Slurm's commands, as the batch script uses them: `srun` runs a command on every node. It passes the end on to the head
# alone, as when the machine of the head is shut down: the worker must end by itself.
SRUN = """#!/bin/bash
case "$*" in *printenv*) echo {head}; exit ;; esac
while [[ $1 == --* ]]; do shift; done
ip netns exec {nodes[0]} "$@" & head=$!
ip netns exec {nodes[1]} "$@" & worker=$!
trap 'kill $head' TERM
while kill -0 $head || kill -0 $worker; do wait; done 2> /dev/null
"""
SCONTROL = """#!/bin/bash
echo "$*" >> {called}
echo "JobId=7 JobState=RUNNING Reason=None"
"""
SECONDS = 300
"""Against hanging, and no measure of speed."""


@pytest.fixture
def nodes() -> Iterator[list[Link]]:
    if reason := why_impossible():
        pytest.skip(reason)
    with bridged(2) as (_, links):
        yield links


def wait_for(condition: Callable[[], object], log: Path, what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what}:\n{log.read_text()}"
        time.sleep(0.2)


def listening(node: Link) -> set[tuple[str, int]]:
    """Addresses and TCP ports that somebody listens on in a node's network."""
    lines = subprocess.run(
        [*node.inside, "ss", "-Hltn"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    places = [line.split()[3].rsplit(":", 1) for line in lines]
    return {(address.strip("[]"), int(port)) for address, port in places}


def documented_ports() -> set[int]:
    """What the README asks the firewall to let through, less what training takes."""
    text = (ROOT / "cluster/README.md").read_text()
    ranges = [(int(low), int(high or low)) for low, high in re.findall(r"^\| (\d+)(?:-(\d+))? \|", text, re.MULTILINE)]
    return {port for low, high in ranges if low < 32768 for port in range(low, high + 1)}


def processes_in(nodes: list[Link]) -> list[int]:
    """Processes of both nodes."""
    found = [subprocess.run(["ip", "netns", "pids", node.namespace], capture_output=True, text=True) for node in nodes]
    return [int(pid) for one in found for pid in one.stdout.split()]


def test_a_preempted_search_ends_in_order_and_its_job_is_queued_again(
    tiny_values: dict, nodes: list[Link], token_environment: dict[str, str], tmp_path: Path
) -> None:
    """A head and a worker with a token, of which nothing is left when the head is stopped.

    `srun` and `scontrol` are stand-ins: this is a test of our scripts, not of Slurm.
    """
    head, worker = nodes
    config, token, called, log = (tmp_path / name for name in ("config.yaml", "token", "called", "log"))
    config.write_text(yaml.safe_dump(tiny_values))
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text.format(head=head.address, nodes=[n.namespace for n in nodes], called=called))
        (tmp_path / name).chmod(0o755)
    temporary = Path(tempfile.mkdtemp(prefix="nodes_", dir="/tmp"))  # short enough for sockets
    environment = token_environment | {
        "PATH": f"{tmp_path}:{token_environment['PATH']}",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "TMPDIR": str(temporary),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # of a minute
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURMD_NODENAME": "first",
    }
    command = [*head.inside, "bash", "cluster/slurm.sbatch", str(config)]
    with log.open("wb") as stream:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    try:
        wait_for(lambda: "score magnitude" in log.read_text(), log, "search")
        for node in nodes:
            open_to_others = {port for address, port in listening(node) if address not in ("127.0.0.1", "::1")}
            assert open_to_others
            assert open_to_others <= documented_ports()
        assert [address for address, port in listening(head) if port == 8265] == ["127.0.0.1"]
        refused = subprocess.run(
            [*worker.inside, "ray", "status", "--address", f"{head.address}:6379"],
            env=environment | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert refused.returncode
        assert "Unauthenticated" in refused.stderr
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=SECONDS) == 143, log.read_text()
        wait_for(lambda: not processes_in(nodes), log, "end of all processes", seconds=5)
    finally:
        for pid in processes_in(nodes):
            psutil.Process(pid).kill()
        kept = [path for path in set(re.findall(r"/tmp/ray\.\w+", log.read_text())) if Path(path).exists()]
        for path in kept:
            shutil.rmtree(path)
    assert kept == []
    assert called.read_text().splitlines() == ["--oneliner show job 7", "requeue 7"]
    temporary.rmdir()  # nothing is left in it
