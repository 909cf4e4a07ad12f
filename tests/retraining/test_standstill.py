"""A run that is lost again and again before its next checkpoint ends."""

from shortened_llm.retraining.standstill import fault_of_standstill
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, write_bytes


def test_attempts_at_the_same_step_are_counted(store: Store) -> None:
    url = join(store.url, "run", "beginnings.json")
    faults = [fault_of_standstill(url, step, 3) for step in (0, 0, 0, 20, 20, 20)]
    assert faults == [None] * 6, "it got on in between"
    for _ in range(2):
        fault = fault_of_standstill(url, 20, 3)
        assert fault is not None
        assert fault.startswith("3 attempts in a row were lost between step 20 and the next checkpoint")
    assert fault_of_standstill(url, 40, 3) is None


def test_a_count_that_was_cut_short_begins_anew(local_store: Store) -> None:
    url = join(local_store.url, "run", "beginnings.json")
    assert [fault_of_standstill(url, 5, 1) is None for _ in range(2)] == [True, False]
    write_bytes(url, b'{"step": 5, "cou')
    assert [fault_of_standstill(url, 5, 1) is None for _ in range(2)] == [True, False]
