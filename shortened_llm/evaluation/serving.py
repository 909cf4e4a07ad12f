"""Speed behind a server: two of vLLM's, one for each model, asked in turns over its OpenAI-compatible API.

vLLM pins torch and transformers to versions of its own, so it is not imported: the `vllm` command may come from any
virtual environment.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import psutil
import torch

from shortened_llm.config import EfficiencyConfig
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.generation import Shape, Timing, in_turns, prompt_tokens, shapes, speed_of, speed_up
from shortened_llm.logs import LOGGER
from shortened_llm.models.directory import load_tokenizer
from shortened_llm.records import ServingScore

HOST = "127.0.0.1"
MODEL_NAME = "model"
MEMORY_SHARES = {"cuda": 0.45, "cpu": 0.3}
"""Share of the device's memory for each of the two servers. A CPU's is not theirs alone."""
START_SECONDS = 900.0
"""A first start compiles."""
REQUEST_SECONDS = 600.0
STOP_SECONDS = 20.0
ERROR_LINE = re.compile(r"\b[A-Z]\w*Error: ")


class ServerError(RuntimeError):
    """The server did not start, or did not do what it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server."""

    url: str
    process_group: int


def vllm_command() -> str:
    """Path of the `vllm` command.

    Raises:
        BadInputError: there is none.
    """
    found = shutil.which("vllm")
    if found is None:
        raise BadInputError(
            "--vllm: there is no `vllm` command on PATH; install it, in a virtual environment of its own, and put that "
            "one's bin directory behind the others on PATH"
        )
    return found


def measure_serving(dense: Path, model: Path, settings: EfficiencyConfig, *, dtype: str) -> ServingScore:
    """Latency, time to the first token and throughput of the models in two directories, each shape as one request.

    Every sequence has the same prompt, nothing is cached between requests, and no sequence ends early. Both servers are
    up at once and share the accelerator; only one has work at a time.

    Raises:
        BadInputError: as `vllm_command`.
        ServerError: with the cause from the server's log.
    """
    command = vllm_command()
    prompt = prompt_tokens(load_tokenizer(dense), settings.prompt_length)[0].tolist()
    points, dense_points, speed_ups = [], [], []
    with contextlib.ExitStack() as servers:
        started: list[Server] = []
        for directory in (dense, model):
            LOGGER.info("starting vLLM with %s", directory)
            started.append(servers.enter_context(vllm_server(command, directory, settings, dtype=dtype)))
        with urllib.request.urlopen(f"{started[0].url}/version", timeout=REQUEST_SECONDS) as answer:
            version = json.load(answer)["version"]
        for shape in shapes(settings):
            LOGGER.info("vLLM: generating %s", shape)
            requests = [partial(_ask_alone, server, started, prompt, shape) for server in started]
            in_turns(requests, settings.warmups)
            of_dense, of_model = in_turns(requests, settings.runs)
            dense_points.append(speed_of(of_dense, shape, settings.prompt_length))
            points.append(speed_of(of_model, shape, settings.prompt_length))
            speed_ups.append(speed_up(of_dense, of_model))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    protocol = (
        f"vLLM {version} over HTTP, {device}, {dtype}, the same prompt of {settings.prompt_length} tokens "
        f"in each sequence, {settings.runs} runs after {settings.warmups} warm-ups, in turns with the dense model"
    )
    return ServingScore(
        protocol=protocol, points=tuple(points), dense_points=tuple(dense_points), speed_ups=tuple(speed_ups)
    )


@contextlib.contextmanager
def vllm_server(command: str, directory: Path, settings: EfficiencyConfig, *, dtype: str) -> Iterator[Server]:
    """A server on the loopback interface, ready for requests; it ends with the context."""
    port = _free_port()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = [
        *(command, "serve", str(directory.absolute()), "--served-model-name", MODEL_NAME),
        *("--host", HOST, "--port", str(port), "--dtype", dtype, "--no-enable-prefix-caching"),
        *("--gpu-memory-utilization", str(MEMORY_SHARES[device]), "--max-num-seqs", str(max(settings.batch_sizes))),
        *("--max-model-len", str(settings.prompt_length + max(settings.output_lengths))),
    ]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            url = f"http://{HOST}:{port}"
            _wait_until_ready(url, process, log)
            yield Server(url=url, process_group=process.pid)
        finally:
            _end(process)


def _ask_alone(server: Server, servers: Sequence[Server], prompt: list[int], shape: Shape) -> Timing:
    """A timed request. On a CPU the other servers are halted meanwhile: waiting, their threads would take its cores."""
    others = [] if torch.cuda.is_available() else [other for other in servers if other != server]
    for other in others:
        os.killpg(other.process_group, signal.SIGSTOP)
    try:
        return timed_request(server.url, prompt, shape)
    finally:
        for other in others:
            os.killpg(other.process_group, signal.SIGCONT)


def timed_request(url: str, prompt: list[int], shape: Shape) -> Timing:
    """One generation of a batch, streamed. The first token is there when each sequence has sent something.

    Raises:
        ServerError: other than the tokens asked for came.
    """
    body = {
        "model": MODEL_NAME,
        "prompt": [prompt] * shape.batch_size,
        "max_tokens": shape.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    waiting, first, generated = set(range(shape.batch_size)), 0.0, 0
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            waiting -= {choice["index"] for choice in event.get("choices", ())}
            first = first or (0.0 if waiting else time.perf_counter())
            generated = (event.get("usage") or {}).get("completion_tokens", generated)
    latency = time.perf_counter() - started
    if generated != shape.batch_size * shape.output_tokens or not first:
        raise ServerError(f"{shape}: the server sent {generated} tokens")
    return Timing(latency=latency, time_to_first_token=first - started)


def _wait_until_ready(url: str, process: subprocess.Popen, log: IO[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):  # refused until it listens
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(0.5)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    causes = [line for line in lines if ERROR_LINE.search(line)] or lines[-1:] or ["no word"]
    state = f"was not ready in {START_SECONDS:g} s" if process.poll() is None else f"ended with {process.returncode}"
    raise ServerError(f"vLLM {state}: {causes[0]}")  # the first is the cause of the others


def _end(process: subprocess.Popen) -> None:
    """It and its own processes; returns when none is left."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(process.pid)
        family = [server, *server.children(recursive=True)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        family = psutil.wait_procs(family, STOP_SECONDS)[1]
    process.poll()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
