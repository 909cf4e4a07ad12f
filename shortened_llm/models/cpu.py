"""Settings of a process that computes on CPU."""

import ctypes
import os

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def fair_threads(processes: int) -> int:
    """Threads for each of equal processes that share this machine's cores."""
    return max(1, (os.cpu_count() or 1) // processes)


def prepare_cpu(threads: int) -> None:
    """Compute with this many threads, and keep freed memory.

    glibc gives every freed block of more than 32 MiB back to the kernel, and logits are larger: with it, a forward
    pass spends a third of its time on page faults (SmolLM2-135M, 2 cores: 1,050 tokens/s against 1,570).
    """
    torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    except (OSError, AttributeError):
        return  # another C library
