"""Peak memory of a piece of work, in the process that does it."""

import threading
from pathlib import Path
from types import TracebackType

import torch

from shortened_llm.models.cpu import release_freed_memory


class PeakMemory:
    """Highest memory while the context lasts, above what the process held at its start: anonymous pages, and on a GPU
    the allocator's bytes. Pages of mapped files are no part of it: the kernel may drop them."""

    def __enter__(self) -> "PeakMemory":
        release_freed_memory()  # or what was freed before would hide what is allocated now
        self._start = self._peak = _anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.held_host_bytes = _anonymous_bytes() - self._start
        self.host_bytes = max(self._peak - self._start, self.held_host_bytes)
        self.bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.host_bytes

    def _follow(self) -> None:
        while not self._ended.wait(0.01):
            self._peak = max(self._peak, _anonymous_bytes())


def _anonymous_bytes() -> int:
    """What only this process holds: all but the pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssShmem"))
