"""Each chunk is measured once, whoever takes it."""

import threading
from functools import partial

from shortened_llm.evaluation.chunks import Chunks, Taker


def test_each_chunk_is_taken_once_the_first_ones_first() -> None:
    chunks = Chunks()
    one, two = chunks.enter(), chunks.enter()
    assert chunks.can_be_helped  # nobody knows yet how many
    assert not chunks.are_answered
    assert [chunks.take(taker, "a", "", 3) for taker in (one, two, one, two)] == [0, 1, 2, None]
    assert not chunks.can_be_helped
    assert not chunks.are_answered
    assert chunks.take(two, "b", "", 1) == 0  # another kind


def test_what_is_given_back_is_taken_by_another() -> None:
    chunks = Chunks()
    one, two = chunks.enter(), chunks.enter()
    assert [chunks.take(one, "a", "", 3), chunks.take(two, "a", "", 3), chunks.take(one, "a", "", 3)] == [0, 1, 2]
    chunks.give_back(one)
    assert chunks.num_left == 2
    assert chunks.take(one, "a", "", 3) is None  # it was given up
    assert [chunks.take(two, "a", "", 3) for _ in range(3)] == [0, 2, None]


def test_all_is_answered_when_nobody_holds_anything() -> None:
    chunks = Chunks()
    one, two = chunks.enter(), chunks.enter()
    assert [chunks.take(one, "a", "", 2), chunks.take(two, "a", "", 2)] == [0, 1]
    chunks.finish(one)
    assert not chunks.are_answered
    assert (chunks.signs_of_life(two), chunks.num_left) == (1, 0)
    chunks.finish(two)
    chunks.enter()  # holds nothing
    assert chunks.are_answered


def test_who_would_ask_other_things_cannot_help() -> None:
    chunks = Chunks()
    one, two = chunks.enter(), chunks.enter()
    assert chunks.take(one, "a", "first", 4) == 0
    assert chunks.take(two, "a", "second", 5) is None
    assert not chunks.can_be_helped
    assert chunks.take(one, "a", "first", 4) == 1
    chunks.give_back(one)  # nobody answered any
    assert [chunks.take(two, "a", "second", 5) for _ in range(6)] == [0, 1, 2, 3, 4, None]


def test_who_has_all_there_is_may_ask_other_things() -> None:
    """A measurement that begins again with smaller batches sets its task up anew."""
    chunks = Chunks()
    taker = Taker(partial(chunks.take, chunks.enter()))
    assert next(taker.chunks("a", "first", 3)) == 0
    assert list(taker.chunks("a", "second", 4)) == [0, 1, 2, 3]


def test_it_says_when_chunks_become_known() -> None:
    opened: list[int] = []
    chunks = Chunks(on_open=lambda: opened.append(1))
    one = chunks.enter()
    for kind in "aab":
        chunks.take(one, kind, "", 2)
    assert len(opened) == 2


def test_threads_do_not_take_the_same() -> None:
    chunks = Chunks()
    found: list[list[int]] = [[], [], [], []]

    def take_all(mine: list[int]) -> None:
        mine.extend(Taker(partial(chunks.take, chunks.enter())).chunks("a", "", 2_000))

    threads = [threading.Thread(target=take_all, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for mine in found for number in mine) == list(range(2_000))


def test_a_measurement_that_begins_again_takes_the_same_first() -> None:
    chunks = Chunks()
    taker = Taker(partial(chunks.take, chunks.enter()))
    first = taker.chunks("a", "", 4)
    assert [next(first), next(first)] == [0, 1]
    assert chunks.take(chunks.enter(), "a", "", 4) == 2
    assert list(taker.chunks("a", "", 4)) == [0, 1, 3]


def test_alone_it_takes_all() -> None:
    taker = Taker()
    assert list(taker.chunks("a", "", 3)) == [0, 1, 2]
    assert list(taker.chunks("b", "", 2)) == [0, 1]
