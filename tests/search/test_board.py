"""What the driver reads of a running search."""

from dataclasses import dataclass

import pytest

from shortened_llm.search.cluster.board import Board


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0, "starting training workers"),
        (19, "starting training workers"),
        (21, "waiting for 8 worker(s) x {GPU: 1} (20 s of 1800 s)"),
        (45, "waiting for 8 worker(s) x {GPU: 1} (30 s of 1800 s)"),
        (123, "waiting for 8 worker(s) x {GPU: 1} (120 s of 1800 s)"),
    ],
)
def test_a_wait_counts_its_seconds(seconds: float, line: str) -> None:
    clock = Clock()
    board = Board(clock)
    board.post("trial", "starting training workers")
    board.wait("trial", "8 worker(s) x {GPU: 1}", 1800)
    clock.now += seconds
    assert board.read(0).lines == {"trial": line}


def test_a_line_ends_a_wait() -> None:
    clock = Clock()
    board = Board(clock)
    board.wait("trial", "at least 2 worker(s) x {CPU: 1}", None)
    clock.now += 61
    assert board.read(0).lines == {"trial": "waiting for at least 2 worker(s) x {CPU: 1} (60 s)"}
    board.post("trial", "started 2 worker(s)")
    clock.now += 60
    assert board.read(0).lines == {"trial": "started 2 worker(s)"}
    board.wait("trial", "2 worker(s) x {CPU: 1}", 8)  # they were lost
    clock.now += 10
    board.post("trial", None)
    clock.now += 60
    assert board.read(0).lines == {"trial": None}


def test_states_and_hours_are_counted() -> None:
    board = Board()
    for trial in "abc":
        board.enter(trial, "pending")
    board.enter("a", "training")
    board.enter("b", "done")
    board.spend("run 1", 0.5)
    board.spend("run 1", 0.75)
    board.spend("run 2", 1.0)
    reading = board.read(0)
    assert reading.trials == {"pending": 1, "training": 1, "done": 1}
    assert reading.trials["failed"] == 0
    assert reading.accelerator_hours == 1.75


def test_notes_are_read_once() -> None:
    board = Board()
    board.note("a", "one")
    assert board.read(0).notes == ["a: one"]
    board.note("b", "two")
    assert board.read(1).notes == ["b: two"]


def test_a_search_says_how_far_it_is_as_a_whole() -> None:
    clock = Clock()
    board = Board(clock)
    for trial in "abcdef":
        board.enter(trial, "pending")
    board.enter("f", "done")  # by an earlier driver: it tells nothing of how long they take
    assert board.read(0).overview is None
    board.enter("a", "training")
    board.enter("b", "waiting")
    assert board.read(0).overview == "1 of 6 trials done, 2 under way, 3 pending"
    clock.now += 600
    board.enter("a", "done")
    board.enter("c", "training")
    assert board.read(0).overview == "2 of 6 trials done, 2 under way, 2 pending; about 15 min left"
    board.enter("c", "failed")
    clock.now += 60
    assert "1 failed" in str(board.read(0).overview)
    for trial in "bde":
        board.enter(trial, "done")
    assert board.read(0).overview == "5 of 6 trials done, 0 under way, 1 failed"
