"""The end of a spot machine is noticed as the clouds announce it, and told to Ray."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.scripts.scripts import drain_node

from tests.cluster.files import CLUSTER

SCRIPT = CLUSTER / "announce_preemption.py"


class Metadata(BaseHTTPRequestHandler):
    """The metadata services of EC2 (version 2, which wants a session) and Compute Engine, as far as they are asked."""

    asked = 0
    ends_at = 2
    """Which question is answered with the notice."""

    def do_PUT(self) -> None:
        self._answer(200, "session") if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else self._answer(400, "")

    def do_GET(self) -> None:
        type(self).asked += 1
        ending = self.asked >= self.ends_at
        if self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self._answer(200, "TRUE" if ending else "FALSE")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.headers["X-aws-ec2-metadata-token"] is None:
            self._answer(400, "")
        elif self.headers["X-aws-ec2-metadata-token"] != "session":
            self._answer(401, "")
        else:
            self._answer(*((200, '{"action": "terminate"}') if ending else (404, "")))

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def metadata_address() -> Iterator[str]:
    Metadata.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", 110), ("gcp", 25)])
def test_the_notice_is_passed_on_once(cloud: str, seconds: int, metadata_address: str, tmp_path: Path) -> None:
    called = tmp_path / "called"
    ray = tmp_path / "ray"  # in place of Ray's command line, whose parser reads the arguments below
    ray.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {called}\n')
    ray.chmod(0o755)
    done = subprocess.run(
        [sys.executable, SCRIPT, cloud],
        env={**os.environ, "METADATA_ADDRESS": metadata_address, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert Metadata.asked == Metadata.ends_at
    command, *arguments = called.read_text().splitlines()
    assert command == "drain-node"
    options = drain_node.make_context("ray drain-node", arguments).params
    assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert options["deadline_remaining_seconds"] == seconds
    assert options["node_id"] is None  # the node that it runs on
