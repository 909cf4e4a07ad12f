"""The device, models on it, and the figures that the tests leave."""

import gc
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers

from shortened_llm.records import ModelRef
from tests.gpu.models import DISTINCT, write_model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", type=Path, metavar="FILE", help="write the figures of the run to this JSON file")
    parser.addoption("--rehearse", action="store_true", help="without CUDA: try the tests on the CPU, at toy size")


@pytest.fixture(scope="session")
def rehearsed(pytestconfig: pytest.Config) -> bool:
    """Whether the tests themselves are tried: on the CPU, at toy size."""
    return not torch.cuda.is_available() and pytestconfig.getoption("--rehearse", default=False)


@pytest.fixture(scope="session")
def device(rehearsed: bool) -> torch.device:
    if rehearsed:
        torch.set_num_threads(1)  # threads that wait for one another cost more than toys do
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def dtype(rehearsed: bool) -> str:
    """To compute in; not every processor has bfloat16."""
    return "float32" if rehearsed else "bfloat16"


@pytest.fixture(scope="session", autouse=True)
def exact_products(device: torch.device) -> None:
    """float32 means float32: TF32 keeps ten bits of a product's factors."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def free_memory() -> Iterator[None]:
    """No test finds the memory of the one before taken."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def process_group(device: torch.device) -> Iterator[None]:
    """A process group of one, for tensors on either device."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory, device: torch.device, rehearsed: bool) -> Callable:
    """Give a shape's model, stored in bfloat16; each is written once. A rehearsal takes the toy's shape for all."""
    written: dict[str, ModelRef] = {}

    def give(shape: str) -> ModelRef:
        if shape not in written:
            directory = tmp_path_factory.mktemp(shape)
            written[shape] = write_model(directory, "toy" if rehearsed else shape, dtype=torch.bfloat16, device=device)
            torch.cuda.empty_cache()
        return written[shape]

    return give


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """Small, in float32, with blocks that differ."""
    directory = tmp_path_factory.mktemp("toy-float32")
    return write_model(directory, "toy", dtype=torch.float32, device=torch.device("cpu"), deviation=DISTINCT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What some work took."""

    seconds: float
    peak_gib: float
    """The most GPU memory that tensors took at once, what was there before included."""


def cost_of(work: Callable[[], object], device: torch.device) -> Cost:
    """Do it, and wait for it."""
    gc.collect()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return Cost(seconds=seconds, peak_gib=torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0)


class Figures:
    """What was measured, by name; written after each, so that a run that is cut short leaves what it has."""

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self._path = path
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, a rehearsal"
        self._found: dict[str, object] = {
            "device": name,
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
            f"Python {platform.python_version()}",
        }

    def add(self, name: str, **values: float | str | None) -> None:
        """Keep them, and print a line."""
        self._found[name] = values
        shown = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print(f"\n{name}: {', '.join(shown)}")  # noqa: T201
        if self._path is not None:
            self._path.write_text(json.dumps(self._found, indent=1))


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config, device: torch.device) -> Figures:
    return Figures(pytestconfig.getoption("--figures", default=None), device)
