"""A unit's work in chunks that processes take one by one, so that whoever is free can help with what is left.

How a unit is cut into chunks does not depend on who takes them: so neither do its numbers, to the digit.
"""

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator


class Chunks:
    """What is left of one unit. Several threads may use it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, list[int]] = {}
        self._taken: dict[int, list[tuple[str, int]]] = {}
        self._takers = itertools.count()

    @property
    def are_left(self) -> bool:
        """Whether a process that joins in now would find something to do; True before the first chunk is taken."""
        with self._lock:
            return not self._left or any(self._left.values())

    def enter(self) -> int:
        """A new taker."""
        with self._lock:
            taker = next(self._takers)
            self._taken[taker] = []
            return taker

    def take(self, taker: int, kind: str, count: int) -> int | None:
        """The next chunk, which is this taker's from now on; None when there is none.

        Args:
            kind: of chunks; each has numbers of its own.
            count: how many chunks there are of this kind: 0 to count - 1.
        """
        with self._lock:
            left = self._left.setdefault(kind, list(range(count)))
            if not left or taker not in self._taken:  # it was given up, and may not know
                return None
            number = heapq.heappop(left)
            self._taken[taker].append((kind, number))
            return number

    def give_back(self, taker: int) -> None:
        """All that a taker took, because it will not answer."""
        with self._lock:
            for kind, number in self._taken.pop(taker):
                heapq.heappush(self._left[kind], number)


Take = Callable[[str, int], int | None]
"""Of one taker: `Chunks.take` without its first argument."""


class Taker:
    """Takes chunks for one measurement, which may begin again with the same ones."""

    def __init__(self, take: Take | None = None) -> None:
        """
        Args:
            take: takes all chunks unless given.
        """
        if take is None:
            chunks = Chunks()
            alone = chunks.enter()
            self._take: Take = lambda kind, count: chunks.take(alone, kind, count)
        else:
            self._take = take
        self._taken: dict[str, list[int]] = {}

    def chunks(self, kind: str, count: int) -> Iterator[int]:
        """Numbers of chunks until none is left, those first that were taken before."""
        taken = self._taken.setdefault(kind, [])
        yield from tuple(taken)
        while (number := self._take(kind, count)) is not None:
            taken.append(number)
            yield number
