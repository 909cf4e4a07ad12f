"""A run that is lost again and again before its next checkpoint ends."""

from shortened_llm.retraining.standstill import fault_of_standstill
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, write_bytes


def fault(store: Store, step: int, *, workers: int = 2, most_lost: int = 3) -> str | None:
    url = join(store.url, "run", "beginnings.json")
    return fault_of_standstill(url, step=step, num_steps=60, workers=workers, most_lost=most_lost)


def test_attempts_at_the_same_step_are_counted(store: Store) -> None:
    assert [fault(store, step) for step in (0, 0, 0, 20, 20, 20)] == [None] * 6, "it got on in between"
    for _ in range(2):
        assert str(fault(store, 20)).startswith(
            "3 attempts in a row were lost or stopped behind step 20 of 60, before the next checkpoint; a smaller"
        )
    assert fault(store, 40) is None
    assert [fault(store, 60) for _ in range(3)] == [None] * 3
    assert "before the model was exported" in str(fault(store, 60))


def test_growing_loses_nothing(local_store: Store) -> None:
    assert [fault(local_store, 20, workers=workers) for workers in (2, 3, 4, 5, 6, 7)] == [None] * 6
    assert [fault(local_store, 20, workers=workers) is None for workers in (5, 5, 6, 6)] == [True, True, True, False]


def test_a_count_that_was_cut_short_begins_anew(local_store: Store) -> None:
    for _ in range(2):
        assert [fault(local_store, 5, most_lost=1) is None for _ in range(2)] == [True, False]
        write_bytes(join(local_store.url, "run", "beginnings.json"), b'{"step": 5, "cou')
