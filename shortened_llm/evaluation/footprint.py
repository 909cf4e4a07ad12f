"""What a model occupies: its cache, peak memory, a busy GPU; and what to do when memory runs out."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from shortened_llm.models.cpu import available_memory, release_freed_memory
from shortened_llm.models.flops import forward_flops
from shortened_llm.records import Footprint

T = TypeVar("T")

SETTLING_SECONDS, UTILISATION_INTERVAL, SAMPLES = 1.0, 0.1, 20
"""NVML averages over the last 1/6 to 1 s, so the first second is discarded."""


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """The result of `work`; None, and its memory freed, where memory runs out."""
    try:
        return work()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # Behind the except clause, where the error no longer holds the frames and their tensors.
    clear_device_cache(garbage_collection=True)
    return None


def footprint(model: PreTrainedModel) -> Footprint:
    """What the model costs in any shape of input."""
    return Footprint(
        weight_bytes=weight_bytes(model),
        kv_bytes_per_token=kv_bytes_per_token(model),
        flops_per_token=forward_flops(model),
    )


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the parameters, counting tied ones once."""
    return int(model.get_memory_footprint(return_buffers=False))


@torch.inference_mode()
def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """What the cache of one sequence grows by with a token, measured: so that it holds for every kind of attention.

    A state of fixed size counts nothing, and a block with a window only within it.
    """
    one, two = (_cache_bytes(model, length) for length in (1, 2))
    return two - one


def _cache_bytes(model: PreTrainedModel, length: int) -> int:
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.device)
    cache = model(input_ids=tokens, use_cache=True).get("past_key_values")
    tensors = (tensor for layer in getattr(cache, "layers", ()) for tensor in vars(layer).values())
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def free_memory(device: str, num_gpus: int = 1) -> int:
    """Bytes that may still be taken: of the first so many GPUs, or of this machine."""
    if torch.device(device).type == "cpu":
        return available_memory()
    return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in range(num_gpus))


def memory_growth(work: Callable[[], object], gpus: Sequence[torch.device]) -> int:
    """Bytes that `work` held at its peak above what was held before: of the GPUs' allocators, or the resident set where
    there are none.

    So what else lies in memory, such as another model, does not count. On CPU the kernel keeps the peak; freed memory
    is given back to it before, or what is taken from that would not show. A process that keeps freed blocks
    (`prepare_cpu`) holds them at the peak too.
    """
    if gpus:
        for gpu in gpus:
            torch.cuda.synchronize(gpu)
            torch.cuda.reset_peak_memory_stats(gpu)
        before = sum(map(torch.cuda.memory_allocated, gpus))
        work()
        return sum(map(torch.cuda.max_memory_allocated, gpus)) - before
    release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = _peak_resident_bytes()
    work()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    """The largest resident set of this process; the kernel writes kilobytes and means KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def gpu_utilisation(work: Callable[[], object], gpus: Sequence[torch.device]) -> float | None:
    """Share of time in which a kernel runs, 0 to 1, while `work` is repeated, mean over the GPUs; None without any, and
    without NVML."""
    if not gpus:
        return None
    try:
        torch.cuda.utilization(gpus[0])
    except Exception:  # no pynvml, no driver, a GPU that is split: errors of classes that only pynvml knows
        return None

    def sample() -> list[int]:
        time.sleep(SETTLING_SECONDS)
        found = []
        for _ in range(SAMPLES):
            time.sleep(UTILISATION_INTERVAL)
            found += [torch.cuda.utilization(gpu) for gpu in gpus]
        return found

    with ThreadPoolExecutor(1) as sampler:
        sampling = sampler.submit(sample)
        while not sampling.done():
            work()
    return mean(sampling.result()) / 100
