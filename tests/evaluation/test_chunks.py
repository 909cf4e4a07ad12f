"""Each chunk is measured once, whoever takes it."""

import threading
from functools import partial

from shortened_llm.evaluation.chunks import Chunks, Taker


def test_each_chunk_is_taken_once_the_first_ones_first() -> None:
    chunks = Chunks()
    one, two = chunks.enter(), chunks.enter()
    assert chunks.are_left  # nobody knows yet how many
    assert [chunks.take(taker, "a", 3) for taker in (one, two, one, two)] == [0, 1, 2, None]
    assert not chunks.are_left
    assert chunks.take(two, "b", 1) == 0  # another kind


def test_what_is_given_back_is_taken_by_another() -> None:
    chunks = Chunks()
    one, two = chunks.enter(), chunks.enter()
    assert [chunks.take(one, "a", 3), chunks.take(two, "a", 3), chunks.take(one, "a", 3)] == [0, 1, 2]
    chunks.give_back(one)
    assert chunks.are_left
    assert chunks.take(one, "a", 3) is None  # it was given up
    assert [chunks.take(two, "a", 3) for _ in range(3)] == [0, 2, None]


def test_threads_do_not_take_the_same() -> None:
    chunks = Chunks()
    found: list[list[int]] = [[], [], [], []]

    def take_all(mine: list[int]) -> None:
        mine.extend(Taker(partial(chunks.take, chunks.enter())).chunks("a", 2_000))

    threads = [threading.Thread(target=take_all, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for mine in found for number in mine) == list(range(2_000))


def test_a_measurement_that_begins_again_takes_the_same_first() -> None:
    chunks = Chunks()
    taker = Taker(partial(chunks.take, chunks.enter()))
    first = taker.chunks("a", 4)
    assert [next(first), next(first)] == [0, 1]
    assert chunks.take(chunks.enter(), "a", 4) == 2
    assert list(taker.chunks("a", 4)) == [0, 1, 3]


def test_alone_it_takes_all() -> None:
    taker = Taker()
    assert list(taker.chunks("a", 3)) == [0, 1, 2]
    assert list(taker.chunks("b", 2)) == [0, 1]
