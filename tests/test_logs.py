"""Where a line goes that is logged about a subject."""

import io
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from shortened_llm import logs
from shortened_llm.logs import LOGGER, StepLog, about, setup_logging, subject
from shortened_llm.search.cluster.board import Board
from shortened_llm.search.cluster.progress import Progress


@pytest.fixture(autouse=True)
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """The lines on stderr so far, without their times."""
    stream, before = io.StringIO(), (LOGGER.handlers[:], LOGGER.level, LOGGER.propagate)
    monkeypatch.setattr(sys, "stderr", stream)
    setup_logging()
    yield lambda: [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]
    LOGGER.handlers[:], LOGGER.level, LOGGER.propagate = before


def test_a_board_has_the_latest_line_of_a_subject_and_every_note(stderr: Callable[[], list[str]]) -> None:
    board = Board()
    methods = {name: SimpleNamespace(remote=getattr(board, name)) for name in ("post", "note")}
    with Progress(SimpleNamespace(**methods), "score taylor").under_way():
        for step in (1, 2):
            LOGGER.info("%d/2", step)
            LOGGER.warning("sequence %d is odd", step)
        reading = board.read(0)
    assert reading.lines == {"score taylor": "2/2"}
    assert reading.notes == ["score taylor: sequence 1 is odd", "score taylor: sequence 2 is odd"]
    assert board.read(0).lines == {"score taylor": None}
    assert board.read(2).notes == []
    assert not stderr()


def test_without_a_board_the_subject_stands_before_the_line(stderr: Callable[[], list[str]]) -> None:
    with about("score taylor"):
        LOGGER.info("1/2")
        other = threading.Thread(target=LOGGER.info, args=("of a thread",))
        other.start()
        other.join()
        with about(None):
            assert subject() is None
    LOGGER.info("of nothing")
    assert stderr() == ["score taylor: 1/2", "of a thread", "of nothing"]


def test_steps_are_counted_every_few_seconds_and_at_the_end(
    stderr: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    with about("score"):
        steps = StepLog(8)
        for _ in range(8):
            now += 2
            steps.add()
    assert stderr() == ["score: 3/8, 10 s left", "score: 6/8, 4 s left", "score: 8/8, 0 s left"]
