"""A real S3 server for tests: SeaweedFS from its wheel, on the loopback interface."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import s3fs

READY_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    port: int
    bucket: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use the server: as on a user's machine, credentials are in the environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def start_s3_server(directory: Path) -> Iterator[S3Server]:
    """Run the server while the context lasts; its data lies in `directory`."""
    master, volume, filer, s3 = _free_ports(4)
    server = S3Server(port=s3, bucket="bucket", access_key="test-access", secret_key="test-secret")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        _binary(), "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=128", "-volume.max=20", "-filer", "-s3", f"-s3.config={directory / 's3.json'}",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
    ]  # fmt: skip
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "GOMEMLIMIT": "200MiB", "GOGC": "50"}
        )
    try:
        try:
            _create_bucket(server, process)
        except Exception as error:
            raise RuntimeError(f"no S3 server; its log ends with {_end_of(directory / 'server.log')}") from error
        yield server
    finally:
        process.kill()  # a clean end takes 25 s, and nothing here is kept
        process.wait(timeout=30)


def _create_bucket(server: S3Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            fs = s3fs.S3FileSystem(
                key=server.access_key,
                secret=server.secret_key,
                endpoint_url=f"http://127.0.0.1:{server.port}",
                skip_instance_cache=True,
            )
            fs.mkdir(server.bucket)
            return
        except Exception:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def _free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10,000 above, which the server uses too. All are below 32768: from there on
    Linux gives ports to whoever connects. Processes that start together look in different places."""
    found: list[int] = []
    for port in range(20000 + 10 * os.getpid() % 2000, 22768):
        if len(found) == count:
            break
        if _is_free(port) and _is_free(port + 10000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    """Whether a server can have this port: a connection of another process can hold one, too."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _binary() -> str:
    return str(Path(sys.executable).with_name("weed"))
