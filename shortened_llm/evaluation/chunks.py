"""A unit's work in chunks that processes take one by one, so that whoever is free can help with what is left.

How a unit is cut into chunks does not depend on who takes them: so neither do its numbers, to the digit.
"""

import heapq
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class _Kind:
    digest: str
    count: int
    left: list[int]


class Chunks:
    """Who took what of one unit, and what is left. Several threads may use it at once."""

    def __init__(self, on_open: Callable[[], object] = lambda: None) -> None:
        """
        Args:
            on_open: called when it is first known how many chunks there are of some kind.
        """
        self._lock = threading.Lock()
        self._on_open = on_open
        self._kinds: dict[str, _Kind] = {}
        self._taken: dict[int, list[tuple[str, int]]] = {}
        """By taker: what it has not answered yet."""
        self._signs: Counter[int] = Counter()
        self._takers = itertools.count()
        self._asks_other_things = False

    @property
    def num_left(self) -> int:
        """Chunks that nobody took, as far as is known."""
        with self._lock:
            return self._num_left()

    @property
    def can_be_helped(self) -> bool:
        """Whether a process that joins in now may find something to do; True before the first chunk is taken."""
        with self._lock:
            return not self._asks_other_things and (not self._kinds or self._num_left() > 0)

    @property
    def are_answered(self) -> bool:
        """Whether nothing is left, and no taker holds anything."""
        with self._lock:
            return bool(self._kinds) and not self._num_left() and not any(self._taken.values())

    @property
    def asks_other_things(self) -> bool:
        """Whether some taker would ask other things than those before it."""
        with self._lock:
            return self._asks_other_things

    def enter(self) -> int:
        """A new taker."""
        with self._lock:
            taker = next(self._takers)
            self._taken[taker] = []
            return taker

    def sign_of_life(self, taker: int) -> None:
        """It does something; asking for a chunk says so too."""
        with self._lock:
            self._signs[taker] += 1

    def signs_of_life(self, taker: int) -> int:
        """How many there were."""
        with self._lock:
            return self._signs[taker]

    def take(self, taker: int, kind: str, digest: str, count: int) -> int | None:
        """The next chunk, which is this taker's from now on; None when there is none for it.

        Args:
            kind: of chunks; each has numbers of its own.
            digest: of what all chunks of this kind ask. One who would ask other things cannot help.
            count: how many chunks there are of this kind: 0 to count - 1.
        """
        with self._lock:
            self._signs[taker] += 1
            if taker not in self._taken:  # it was given up, and may not know
                return None
            known = self._kinds.get(kind)
            if known is not None and known.digest != digest:
                self._asks_other_things = True
                if not self._forget(taker, kind, known):
                    return None
                known = None
            if known is None:
                known = self._kinds[kind] = _Kind(digest=digest, count=count, left=list(range(count)))
                self._on_open()
            if not known.left:
                return None
            number = heapq.heappop(known.left)
            self._taken[taker].append((kind, number))
            return number

    def finish(self, taker: int) -> None:
        """It has answered all that it took."""
        with self._lock:
            del self._taken[taker]

    def give_back(self, taker: int) -> None:
        """All that a taker took, because it will not answer."""
        with self._lock:
            for kind, number in self._taken.pop(taker):
                heapq.heappush(self._kinds[kind].left, number)

    def _num_left(self) -> int:
        return sum(len(kind.left) for kind in self._kinds.values())

    def _forget(self, taker: int, kind: str, known: _Kind) -> bool:
        """Let this taker begin a kind anew, if nobody else holds or has answered any of it."""
        others = [one for one in self._taken[taker] if one[0] != kind]
        if len(known.left) + len(self._taken[taker]) - len(others) < known.count:
            return False
        self._taken[taker] = others
        return True


Take = Callable[[str, str, int], int | None]
"""Of one taker: `Chunks.take` without its first argument."""


class Taker:
    """Takes chunks for one measurement, which may begin again with the same ones."""

    def __init__(self, take: Take | None = None, sign_of_life: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            take: takes all chunks unless given.
            sign_of_life: to be called now and then by work that takes no chunks for long.
        """
        self.sign_of_life = sign_of_life
        if take is None:
            chunks = Chunks()
            alone = chunks.enter()
            self._take: Take = lambda kind, digest, count: chunks.take(alone, kind, digest, count)
        else:
            self._take = take
        self._taken: dict[tuple[str, str], list[int]] = {}

    def chunks(self, kind: str, digest: str, count: int) -> Iterator[int]:
        """Numbers of chunks until none is left, those first that were taken before."""
        taken = self._taken.setdefault((kind, digest), [])
        for again in tuple(taken):
            self.sign_of_life()
            yield again
        while (number := self._take(kind, digest, count)) is not None:
            taken.append(number)
            yield number
