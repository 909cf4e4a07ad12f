"""Licences, from wherever they are stated; a card that cannot be read ends nothing."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shortened_llm.config import DataSource, ModelConfig
from shortened_llm.models.license import data_license, is_hub_id, model_license
from tests.models.test_gguf import llama, write_gguf


def with_card(directory: Path, card: bytes) -> ModelConfig:
    (directory / "README.md").write_bytes(card)
    return ModelConfig(path=str(directory))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (b"---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        (b"---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        (b"---\nlicense: other\n---\n", "other"),
        (b"---\nlicense: [mit, cc-by-nc-4.0]\n---\n", "mit, cc-by-nc-4.0"),
        (b"---\nlicense: 3\n---\n", None),
        (b"# No front matter\n", None),
    ],
)
def test_the_licence_of_a_card(tmp_path: Path, card: bytes, expected: str | None) -> None:
    assert model_license(with_card(tmp_path, card)) == expected


@pytest.mark.parametrize(
    "card",
    [b"---\nlicense: [mit\n---\n", b"---\n- mit\n- apache-2.0\n---\n", b"---\nlicense: mit\n---\n\xff\xfe"],
    ids=["bad YAML", "a list", "not UTF-8"],
)
def test_a_card_that_cannot_be_read_is_named_and_passed_over(
    tmp_path: Path, card: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_card(tmp_path, card)
    assert model_license(config) is None
    assert f"the licence of {str(tmp_path)!r} cannot be read" in caplog.text
    assert model_license(config.model_copy(update={"license": "mit"})) == "mit"


def test_a_gguf_file_without_a_licence_and_one_that_is_none(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama(tied=True), architecture="llama")
    (tmp_path / "broken.gguf").write_bytes(b"no gguf")
    for name in ("model.gguf", "broken.gguf"):
        assert model_license(ModelConfig(path=str(tmp_path / name))) is None


def test_local_data_has_the_licence_that_is_configured(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a")
    source = DataSource(path=str(tmp_path / "text.txt"))
    assert data_license(source, "calibration") is None
    assert data_license(source.model_copy(update={"license": "cc0-1.0"}), "calibration") == "cc0-1.0"


def test_an_id_of_the_hub_is_what_is_not_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "my-local").mkdir(parents=True)
    names = ("gpt2", "meta-llama/Llama-3.1-8B", "models/my-local", str(tmp_path), "s3://bucket/model")
    assert [is_hub_id(name) for name in names] == [True, True, False, False, False]


ANSWERS = {
    "/api/models/gpt2": {"id": "gpt2", "cardData": {"license": "mit"}},
    "/api/datasets/team/data": {"id": "team/data", "cardData": {"license": ["cc-by-nc-4.0"]}},
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub's API does, for one model and one data set."""

    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path.partition("?")[0])
        content = json.dumps(answer or {"error": "not found"}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


LOOK_UP = """
import json
from shortened_llm.config import DataSource, ModelConfig
from shortened_llm.errors import BadInputError
from shortened_llm.models.license import data_license, model_license
from shortened_llm.models.stage import inspect_model
found = [model_license(ModelConfig(path="gpt2")), data_license(DataSource(path="team/data"), "calibration")]
try:
    inspect_model(ModelConfig(path="team/no-such-model"))
except BadInputError as error:
    found.append(str(error))
print(json.dumps(found))
"""


def look_up(endpoint: str, directory: Path) -> list[str | None]:
    """Licences of a model and a data set on the hub at `endpoint`, and what staging says of a model it cannot get."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(directory / "hf")}
    command = [sys.executable, "-c", LOOK_UP]
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[str | None] = json.loads(done.stdout)
    return found


def test_cards_of_the_hub_are_read(hub: str, tmp_path: Path) -> None:
    model, data, refused = look_up(hub, tmp_path)
    assert (model, data) == ("mit", "cc-by-nc-4.0")
    assert refused is not None
    assert "model.path: 'team/no-such-model'" in refused


def test_a_hub_that_refuses_connections_costs_a_licence_and_no_more(tmp_path: Path) -> None:
    model, data, refused = look_up("http://127.0.0.1:9", tmp_path)
    assert model is data is None
    assert refused is not None
    assert "the hub does not give it" in refused
