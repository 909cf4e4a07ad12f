"""A model on the hub: what it is told from before it is fetched, and that it is fetched once it is staged."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "1" * 40
REPOSITORY = "team/tiny"
WEIGHTS = "model.safetensors"


@dataclass
class Served:
    """The bytes of each file that were asked for."""

    num_bytes: dict[str, int] = field(default_factory=dict)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for one repository, whose files are those of `directory`."""

    def __init__(self, *arguments: object, directory: Path, served: Served) -> None:
        self._directory, self._served = directory, served
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}/tree/{COMMIT}"):
            self._send(json.dumps([self._entry(file) for file in self._files()]).encode(), with_body=with_body)
        elif path.startswith(f"/api/models/{REPOSITORY}/paths-info/{COMMIT}"):
            self._send(b"[]", with_body=with_body)
        elif path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/{COMMIT}"):
            files = [{"rfilename": file.name} for file in self._files()]
            facts = {"id": REPOSITORY, "sha": COMMIT, "siblings": files, "cardData": {"license": "mit"}}
            self._send(json.dumps(facts).encode(), with_body=with_body)
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self._send_file(self._directory / path.rsplit("/", 1)[-1], with_body=with_body)
        else:
            self._send(b"{}", status=404, with_body=with_body)

    def do_POST(self) -> None:
        """Facts of some paths."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        found = [self._entry(self._directory / name) for name in asked if (self._directory / name).is_file()]
        self._send(json.dumps(found).encode(), with_body=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self._directory.iterdir() if path.is_file())

    def _entry(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _hash(file)}

    def _send_file(self, file: Path, *, with_body: bool) -> None:
        if not file.is_file():
            self._send(b"{}", status=404, with_body=with_body, error="EntryNotFound")
            return
        content, status = file.read_bytes(), 200
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            content, status = content[int(first) : int(last) + 1 if last else None], 206
        if with_body:
            self._served.num_bytes[file.name] = self._served.num_bytes.get(file.name, 0) + len(content)
        self._send(content, status=status, with_body=with_body, etag=_hash(file))

    def _send(
        self, content: bytes, *, with_body: bool, status: int = 200, etag: str = "none", error: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def served(tiny_assets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    """The tiny model is on a hub, of which the environment tells."""
    served = Served()
    handler = partial(Hub, directory=tiny_assets / "model", served=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield served
        server.shutdown()


INSPECT = f"""
from shortened_llm.config import ModelConfig
from shortened_llm.models.stage import inspect_model
config, tokenizer = inspect_model(ModelConfig(path={REPOSITORY!r}))
print(config.num_hidden_layers, len(tokenizer))
"""
STAGE = f"""
import sys
from shortened_llm.config import ModelConfig
from shortened_llm.models.stage import stage_model
from shortened_llm.storage.store import Store
ref = stage_model(ModelConfig(path={REPOSITORY!r}), Store.at(sys.argv[1]))
print(ref.num_blocks, *sorted(file.path for file in ref.files))
"""


def python(program: str, *arguments: str) -> list[str]:
    """What a program in a process of its own prints: the hub's client reads its environment when it is imported."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_headers_alone_are_read_before_a_model_is_fetched(served: Served, tiny_assets: Path) -> None:
    size = (tiny_assets / "model" / WEIGHTS).stat().st_size
    blocks, vocabulary = python(INSPECT)
    assert (blocks, int(vocabulary) > 0) == ("8", True)
    assert 0 < served.num_bytes[WEIGHTS] < size / 4


def test_a_staged_model_is_fetched_whole(served: Served, tiny_assets: Path, tmp_path: Path) -> None:
    blocks, *files = python(STAGE, str(tmp_path / "results"))
    assert blocks == "8"
    assert {"config.json", WEIGHTS, "tokenizer.json"} <= set(files)
    assert served.num_bytes[WEIGHTS] == (tiny_assets / "model" / WEIGHTS).stat().st_size
