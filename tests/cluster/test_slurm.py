"""The batch script for Slurm decides when its job is queued again, and a node what token it takes.

This machine has no Slurm: `srun`, `scontrol` and `python` are stand-ins here that record how they are called, so these
tests are of the script's logic alone. tests/ray/test_own_machines.py runs the script with real nodes and a real search.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.files import CLUSTER

SCRIPT = CLUSTER / "slurm.sbatch"
STAND_INS = {
    "srun": """
        echo "srun $*" >> called
        case "$*" in *printenv*) echo 10.0.0.1 ;; *) exec sleep 30 ;; esac""",
    "scontrol": """
        echo "scontrol $*" >> called
        case "$*" in *show*) echo "JobId=7 JobState=$STATE Reason=None" ;; esac""",
    # A search that ends with $CODE, after SIGTERM if it is to get one.
    "python": """
        [ "$1" = -m ] || exit 0
        trap 'exit $CODE' TERM
        echo "python $* at $RAY_ADDRESS" >> called
        [ -z "$SIGNALLED" ] || while :; do sleep 0.1; done
        exit $CODE""",
}


def run(directory: Path, *, code: int, sent: signal.Signals | None, state: str) -> tuple[int, list[str]]:
    """The exit code of the batch script, and what it called."""
    tools = directory / ".venv/bin"  # which the script puts in front of the PATH
    tools.mkdir(parents=True)
    for name, text in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    settings = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "96", "SLURMD_NODENAME": "n1"}
    settings |= {"CODE": str(code), "STATE": state, "SIGNALLED": sent.name if sent else ""}
    called = directory / "called"
    with subprocess.Popen(["bash", SCRIPT, "my.yaml"], cwd=directory, env={**os.environ, **settings}) as script:
        while sent and not (called.exists() and "python" in called.read_text()):
            assert script.poll() is None
            time.sleep(0.05)
        if sent:
            script.send_signal(sent)
        returned = script.wait(timeout=20)
    return returned, called.read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "sent", "state", "requeued"),
    [
        (143, signal.SIGUSR1, "RUNNING", True),  # its time ends
        (143, signal.SIGTERM, "RUNNING", True),  # preempted, with a time of grace
        (1, signal.SIGTERM, "RUNNING", True),  # its Ray ended first
        (143, signal.SIGTERM, "COMPLETING", False),  # preempted, and Slurm queues it again
        (143, signal.SIGTERM, "CANCELLED", False),
        (0, signal.SIGUSR1, "RUNNING", False),
        (2, signal.SIGUSR1, "RUNNING", False),
        (0, None, "RUNNING", False),
        (1, None, "RUNNING", False),
        (2, None, "RUNNING", False),
    ],
)
def test_a_search_that_was_stopped_is_queued_again(
    code: int, sent: signal.Signals | None, state: str, requeued: bool, tmp_path: Path
) -> None:
    returned, called = run(tmp_path, code=code, sent=sent, state=state)
    assert returned == code
    assert "python -m jobs.search my.yaml at 10.0.0.1:6379" in called
    assert ("scontrol requeue 7" in called) is requeued


def test_the_end_of_the_time_is_announced_to_the_script_alone() -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"] == "B:USR1@120"
    assert options["open-mode"] == "append"
    assert {"requeue", "exclusive"} <= options.keys()


@pytest.mark.parametrize(("mode", "said"), [(None, "no token"), (0o644, "others can read it"), (0o640, "others can")])
def test_a_node_starts_with_a_token_that_nobody_else_can_read(mode: int | None, said: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    if mode is not None:
        token.write_text("0123456789abcdef" * 4)
        token.chmod(mode)
    command = ["bash", CLUSTER / "node.sh", "10.0.0.1"]
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode == 2
    assert f"{token}: {said}" in refused.stderr
