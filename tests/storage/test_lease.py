"""One driver per experiment, on a directory and on S3."""

import threading
import time

import pytest

from shortened_llm.errors import BadInputError
from shortened_llm.storage.lease import Lease, LeaseLostError, hold_lease
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, list_names

EXPIRY = 2.0


def test_a_live_owner_is_respected(store: Store) -> None:
    with (
        hold_lease(store.url, expiry_seconds=EXPIRY),
        pytest.raises(BadInputError, match="another driver"),
        hold_lease(store.url, expiry_seconds=EXPIRY),
    ):
        pass


def test_a_released_lease_is_free_at_once(store: Store) -> None:
    with hold_lease(store.url, expiry_seconds=60):
        pass
    started = time.monotonic()
    with hold_lease(store.url, expiry_seconds=60):
        assert time.monotonic() - started < 5


def test_a_dead_owner_is_waited_for(store: Store) -> None:
    dead = Lease(join(store.url, "lease"), 1, expiry_seconds=3600)  # never renews within the test
    assert dead.try_take()
    started = time.monotonic()
    with hold_lease(store.url, expiry_seconds=EXPIRY):
        assert EXPIRY * 0.9 < time.monotonic() - started < EXPIRY * 4


def test_an_owner_that_lost_its_lease_notices(store: Store) -> None:
    noticed = threading.Event()
    old = Lease(join(store.url, "lease"), 1, expiry_seconds=EXPIRY, on_lost=noticed.set)
    assert old.try_take()
    new = Lease(join(store.url, "lease"), 2, expiry_seconds=EXPIRY)
    assert new.try_take()
    assert noticed.wait(EXPIRY * 3)
    assert old.lost.is_set()
    new.release()
    assert list_names(join(store.url, "lease")) == ["00000002.json"]


def test_losing_the_lease_stops_the_driver(local_store: Store) -> None:
    def drive() -> None:
        with hold_lease(local_store.url, expiry_seconds=EXPIRY):
            assert Lease(join(local_store.url, "lease"), 2, expiry_seconds=3600).try_take()
            time.sleep(EXPIRY * 10)

    started = time.monotonic()
    with pytest.raises(LeaseLostError):
        drive()
    assert time.monotonic() - started < EXPIRY * 5


def test_a_race_has_one_winner(store: Store) -> None:
    wins = []
    barrier = threading.Barrier(6)

    def race() -> None:
        lease = Lease(join(store.url, "lease"), 1, expiry_seconds=EXPIRY)
        barrier.wait()
        if lease.try_take():
            wins.append(lease)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    wins[0].release()
