"""A source in pieces of a fixed number of rows, which are packed apart from one another, anywhere.

Range r of shard s is rows r x PIECE_ROWS to (r + 1) x PIECE_ROWS of it. The first ranges of all shards come before the
second ones, so that a corpus that is not read whole is read from all its files. Which pieces make up a data set does
not depend on how many are packed at a time.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from shortened_llm.logs import LOGGER
from shortened_llm.records import FileEntry

PIECE_ROWS = 8192
MAX_RUNNING = 64
"""Pieces packed at a time, at most."""

Handle = TypeVar("Handle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some rows of a source."""

    shard: int
    range: int
    """Which range of rows of the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPiece:
    """The record of a stored piece."""

    fingerprint: str
    url: str
    files: tuple[FileEntry, ...]
    num_sequences: int
    num_documents: int
    left_out: int = 0
    """Pairs of instruction data whose prompt leaves no room for the response."""
    num_rows: int
    """Rows that were read, of whatever purpose."""
    bad_rows: int
    """Rows among them that could not be used."""
    first_bad: str
    """Which the first of these was, and why, in words."""
    is_last: bool
    """Whether the shard's rows end in it."""


@dataclass(frozen=True, kw_only=True)
class Executor(Generic[Handle]):
    """Where pieces are packed."""

    start: Callable[[Piece], Handle]
    result: Callable[[Handle], PackedPiece]
    """Waits for a piece."""
    cancel: Callable[[Handle], None]
    """Ends the work on a piece that turned out not to be needed."""


def pack_pieces(name: str, num_shards: int, at_most: int | None, executor: Executor) -> list[PackedPiece]:
    """Pack as few of the first pieces as hold `at_most` sequences, or all if that is None.

    How many ranges a shard has shows only in packing them, so they are tried in rounds of 1, 2, 4, ... ranges: at most
    about as many are tried past a shard's end as it has.

    Args:
        name: what the source is called in the log.
    """
    packed: list[PackedPiece] = []
    total, documents = 0, 0
    live, first, width = list(range(num_shards)), 0, 1
    while live:
        ended: set[int] = set()
        waiting = _round(live, first, width, ended)
        running: deque[tuple[Piece, object]] = deque()
        while True:
            while _may_start(packed, total, len(running), at_most) and (piece := next(waiting, None)):
                running.append((piece, executor.start(piece)))
            if not running:
                break
            piece, handle = running.popleft()
            if piece.shard in ended:
                executor.cancel(handle)
                continue
            result = executor.result(handle)
            packed.append(result)
            total, documents = total + result.num_sequences, documents + result.num_documents
            LOGGER.info("%s: packed %s sequences of %s documents", name, f"{total:,}", f"{documents:,}")
            if result.is_last:
                ended.add(piece.shard)
            if at_most is not None and total >= at_most:
                for _, handle in running:
                    executor.cancel(handle)
                return packed
        live = [shard for shard in live if shard not in ended]
        first, width = first + width, min(2 * width, MAX_RUNNING)
    return packed


def _round(live: list[int], first: int, width: int, ended: set[int]) -> Iterator[Piece]:
    """Ranges `first` to `first + width` of the shards that have not ended by the time they are asked for."""
    for number in range(first, first + width):
        for shard in live:
            if shard not in ended:
                yield Piece(shard=shard, range=number)


def _may_start(packed: list[PackedPiece], total: int, running: int, at_most: int | None) -> bool:
    """Whether one more piece is likely to be needed: a small corpus or budget should not occupy a cluster."""
    if running >= min(MAX_RUNNING, 1 + 2 * len(packed)):
        return False
    return not running or at_most is None or total + running * total / len(packed) < at_most
