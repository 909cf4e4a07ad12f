"""One driver per experiment, on a directory and on S3."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from shortened_llm.errors import BadInputError
from shortened_llm.storage.lease import Lease, LeaseLostError, StorageLostError, hold_lease, holder
from shortened_llm.storage.retry import OUTAGE_SECONDS
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, list_names, read_bytes
from tests.faulty_proxy import FaultyProxy
from tests.s3_server import S3Server

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


def test_a_store_whose_clock_is_off_tells_who_is_alive(local_store: Store) -> None:
    """By another lease of the same store, as the removal of what nobody needs has one."""
    with hold_lease(local_store.url) as search, hold_lease(join(local_store.url, "cleaning")) as cleaning:
        files = list(Path(local_store.url).rglob("lease/*.json"))
        assert len(files) == 2
        for file in files:
            os.utime(file, (hour_ago := time.time() - 3600, hour_ago))
        assert holder(local_store.url) is None
        assert holder(local_store.url, cleaning.now()) == search.owner


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


def test_an_outage_of_the_store_does_not_cost_the_lease(faulty_store: Store, proxy: FaultyProxy) -> None:
    with hold_lease(faulty_store.url, expiry_seconds=EXPIRY) as lease:
        time.sleep(EXPIRY / 2)
        with proxy.outage(EXPIRY * 2), pytest.raises(BadInputError, match="another driver"):
            take(faulty_store.url)  # a watcher that begins in the outage
        assert not lease.lost.is_set()


def test_a_storage_that_is_lost_for_good_stops_the_driver(faulty_store: Store, proxy: FaultyProxy) -> None:
    """Also one that waits for the storage itself; and it leaves without waiting once more."""

    def drive() -> None:
        with hold_lease(faulty_store.url, expiry_seconds=EXPIRY):
            proxy.down()
            read_bytes(join(faulty_store.url, "file"))

    replace(faulty_store, outage_seconds=EXPIRY * 2).enter()
    started = time.monotonic()
    try:
        with pytest.raises(StorageLostError, match=r"storage\.outage_seconds"):
            drive()
    finally:
        faulty_store.enter()
        proxy.up()
    assert EXPIRY * 2 < time.monotonic() - started < OUTAGE_SECONDS / 5


def test_an_owner_that_was_cut_off_stops_once_it_is_back(
    s3_server: S3Server, proxy: FaultyProxy, faulty_store: Store
) -> None:
    """The owner goes through the proxy, in a process of its own; the watcher does not."""
    code = f"""
import sys, time
from shortened_llm.storage.lease import LeaseLostError, hold_lease
try:
    with hold_lease({faulty_store.url!r}, expiry_seconds={EXPIRY}):
        print("held", flush=True)
        time.sleep(60)
except LeaseLostError:
    print("lost", flush=True)
"""
    environment = {**os.environ, **proxy.environment}
    owner = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        os.environ.update(s3_server.environment)  # undone by the fixture of the proxy
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.down()
        with hold_lease(faulty_store.url, expiry_seconds=EXPIRY) as lease:
            time.sleep(EXPIRY)
            assert owner.poll() is None  # it cannot know yet
            proxy.up()
            started = time.monotonic()
            assert owner.stdout.readline() == "lost\n"
            assert time.monotonic() - started < 5
            assert not lease.lost.is_set()
    finally:
        owner.kill()
        owner.wait()
    assert [json.loads(read_bytes(join(faulty_store.url, "lease", "00000002.json")))["state"]] == ["released"]


def test_a_renewal_whose_answer_hangs_is_tried_again(faulty_store: Store, proxy: FaultyProxy) -> None:
    with hold_lease(faulty_store.url, expiry_seconds=EXPIRY * 2) as lease:
        proxy.delay(60, times=1, methods=("PUT",))  # of the owner: a watcher only reads
        with pytest.raises(BadInputError, match="another driver"):
            take(faulty_store.url, EXPIRY * 4)
        assert not lease.lost.is_set()


def take(url: str, expiry_seconds: float = EXPIRY) -> None:
    with hold_lease(url, expiry_seconds=expiry_seconds):
        pass
