"""Speed behind a server: what is timed, what a broken server leads to, and vLLM itself where it is installed."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from shortened_llm.config import EfficiencyConfig
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.generation import Shape
from shortened_llm.evaluation.serving import ServerError, measure_serving, timed_request, vllm_command, vllm_server
from shortened_llm.models.export import export_view
from shortened_llm.records import ModelRef
from tests.conftest import keeping

SETTINGS = EfficiencyConfig(batch_sizes=(1, 2), output_lengths=(4,), runs=2, warmups=1, prompt_length=5)
PAIR = Shape(batch_size=2, output_tokens=3)


@contextmanager
def answering(events: list[tuple[float, dict]]) -> Iterator[tuple[str, list[dict]]]:
    """A server of the streamed completions API that sends each event after so many seconds; and what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            for seconds, event in events:
                time.sleep(seconds)
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def text(index: int) -> dict:
    return {"choices": [{"index": index, "text": " x"}]}


def usage(tokens: int) -> dict:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


def test_the_first_token_counts_when_every_sequence_has_one() -> None:
    events = [(0.0, text(0)), (0.2, text(0)), (0.2, text(1)), (0.3, text(0)), (0.0, usage(6))]
    with answering(events) as (url, asked):
        timing = timed_request(url, [1, 2, 3], PAIR)
    assert 0.4 <= timing.time_to_first_token < timing.latency
    assert timing.latency - timing.time_to_first_token >= 0.29
    (body,) = asked
    assert body["prompt"] == [[1, 2, 3], [1, 2, 3]]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (3, True, 0)


@pytest.mark.parametrize("events", [[text(0), text(1), usage(5)], [text(0), usage(6)], [text(0), text(1)]])
def test_other_than_the_tokens_asked_for_is_an_error(events: list[dict]) -> None:
    with answering([(0.0, event) for event in events]) as (url, _), pytest.raises(ServerError, match="batch 2 x 3"):
        timed_request(url, [1, 2, 3], PAIR)


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("more", ["", "; echo RuntimeError: something failed, see above"])
def test_a_server_that_ends_is_an_error_with_its_cause(tmp_path: Path, more: str) -> None:
    command = executable(tmp_path / "vllm", f"echo starting; echo ValueError: no room for $2{more}; exit 3")
    with (
        pytest.raises(ServerError, match=rf"ended with 3: ValueError: no room for {tmp_path}$"),
        vllm_server(command, tmp_path, SETTINGS, dtype="float32"),
    ):
        pass


def test_a_server_that_is_never_ready_is_an_error_and_nothing_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortened_llm.evaluation.serving.START_SECONDS", 1.0)
    command = executable(tmp_path / "vllm", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    with (
        pytest.raises(ServerError, match="was not ready in 1 s"),
        vllm_server(command, tmp_path, SETTINGS, dtype="float32"),
    ):
        pass
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_without_the_command_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInputError, match="--vllm: there is no `vllm` command on PATH"):
        vllm_command()


@pytest.mark.skipif(shutil.which("vllm") is None, reason="vllm is not on PATH")
def test_vllm_serves_a_shortened_model(tiny_model: ModelRef, tmp_path: Path, tiny_assets: Path) -> None:
    export_view(tiny_model.view(keeping((0, 1, 4, 6, 7))), tmp_path / "pruned", "float32")
    before = set(psutil.pids())
    score = measure_serving(tiny_assets / "model", tmp_path / "pruned", SETTINGS, dtype="float32")
    assert [point.batch_size for point in score.points] == [1, 2]
    for dense, pruned in zip(score.dense_points, score.points, strict=True):
        assert 0 < pruned.time_to_first_token < pruned.latency
        assert dense.throughput == pytest.approx(dense.batch_size * 4 / dense.latency)
    assert score.protocol.startswith("vLLM ")
    left = [psutil.Process(pid).name() for pid in set(psutil.pids()) - before if psutil.pid_exists(pid)]
    assert not [name for name in left if "vllm" in name.lower()]
