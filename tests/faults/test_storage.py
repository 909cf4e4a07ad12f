"""The storage is away, slow or erring while a search needs it; and a driver that dies while it writes the report."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from shortened_llm.records import Experiment, from_json
from tests.faults.conftest import MakeSearch
from tests.faults.searches import Search, Undisturbed, scores
from tests.faults.table import record
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.s3_server import S3Server

OUTAGE_SECONDS = 30
PATIENCE_SECONDS = 30


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server) as between:
        yield between


@pytest.fixture
def s3_search(
    undisturbed: Undisturbed,
    make_search: MakeSearch,
    local_environment: dict[str, str],
    s3_server: S3Server,
    proxy: FaultyProxy,
) -> Search:
    """The drills' search, its first trial done, with its storage behind the proxy."""
    url = f"s3://{s3_server.bucket}/drill-{proxy.port}"
    s3fs.S3FileSystem(skip_instance_cache=True).put(f"{undisturbed.begun}/", url, recursive=True)
    return make_search({**local_environment, **proxy.environment}, storage={"url": url})


def wait_for_request(search: Search, proxy: FaultyProxy, method: str, part: str) -> None:
    """Wait until the search asks for the first object from now on whose path has this part."""
    first = len(proxy.requests)
    search.wait_for(
        lambda: any(one.method == method and part in one.path for one in proxy.requests[first:]), f"{method} of {part}"
    )


def objects(search: Search, pattern: str) -> list[str]:
    """Paths on the storage, read past the proxy."""
    return sorted(s3fs.S3FileSystem(skip_instance_cache=True).glob(f"{search.values['storage']['url']}/{pattern}"))


def experiment_of(search: Search) -> Experiment:
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    report = f"{search.values['storage']['url']}/experiments/{search.values['experiment']}/report"
    assert b"<html" in fs.cat_file(f"{report}/report.html")
    return from_json(Experiment, fs.cat_file(f"{report}/trials.json"))


def check_whole_on_s3(search: Search, undisturbed: Undisturbed) -> None:
    """As `searches.check_whole`."""
    assert scores(experiment_of(search)) == scores(undisturbed.experiment)
    assert len(objects(search, "retrained/*/attempt-*")) == 2, "a training was repeated"


@pytest.mark.timeout(900)
def test_an_outage_of_half_a_minute_during_everything_costs_time_alone(
    s3_search: Search, proxy: FaultyProxy, undisturbed: Undisturbed
) -> None:
    """Down while a checkpoint is uploaded, while a model is exported, and while it is evaluated."""
    s3_search.start()
    for method, part, what in (
        ("PUT", "/checkpoint_0", "a checkpoint is uploaded"),
        ("PUT", "/retrained/", "a model is exported"),
        ("PUT", "/evaluations/", "a score is written"),
    ):
        wait_for_request(s3_search, proxy, method, part)
        lost, began = s3_search.lost_tokens(), time.monotonic()
        with proxy.outage(OUTAGE_SECONDS):
            pass
        first = len(proxy.requests)
        s3_search.wait_for(lambda first=first: len(proxy.requests) > first, "next request")
        seconds = time.monotonic() - began
        record(
            f"S3 is down {OUTAGE_SECONDS} s while {what}", tokens_lost=s3_search.lost_tokens() - lost, seconds=seconds
        )
    s3_search.end()
    check_whole_on_s3(s3_search, undisturbed)


@pytest.mark.timeout(900)
def test_a_storage_that_is_lost_for_good_ends_the_search(
    s3_search: Search, proxy: FaultyProxy, undisturbed: Undisturbed
) -> None:
    """All its processes together wait for one time, it leaves nothing on this disk, and it goes on another day. A
    rehearsal before it trained in the process that is to end."""
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob("shortened_llm_*"))
    s3_search.values["storage"]["outage_seconds"] = PATIENCE_SECONDS
    s3_search.values["search"]["rehearsal"] = True
    s3_search.start()
    wait_for_request(s3_search, proxy, "PUT", f"/{s3_search.values['experiment']}/train/")
    assert "rehearsal: resuming from a checkpoint" in s3_search.said
    proxy.down()
    began = time.monotonic()
    s3_search.end(code=1)
    seconds = time.monotonic() - began
    said = s3_search.said
    assert said.splitlines()[-1].startswith("failed: StorageLostError: s3://")
    assert "storage.outage_seconds" in said
    assert PATIENCE_SECONDS < seconds < PATIENCE_SECONDS + 45
    assert said.count("trying again") <= 3
    assert set(temporary.glob("shortened_llm_*")) <= before
    proxy.up()
    assert not objects(s3_search, "experiments/*/failures/*/record.json"), "an outage is no failure of a trial"
    s3_search.start().end()
    check_whole_on_s3(s3_search, undisturbed)
    record("S3 is lost for good", tokens_lost=s3_search.lost_tokens(), seconds=seconds)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["503", "slow"])
def test_an_erring_or_slow_storage_costs_time_alone(
    s3_search: Search, proxy: FaultyProxy, undisturbed: Undisturbed, fault: str
) -> None:
    if fault == "503":
        proxy.answer(503, every=10)
    else:
        proxy.delay(0.2)
    began = time.monotonic()
    s3_search.start().end()
    struck = proxy.struck
    proxy.calm()
    assert struck > 10
    check_whole_on_s3(s3_search, undisturbed)
    what = "S3 answers each tenth request 503" if fault == "503" else "each answer of S3 takes 0.2 s more"
    record(what, tokens_lost=s3_search.lost_tokens(), seconds=time.monotonic() - began)


@pytest.mark.timeout(900)
def test_a_driver_killed_while_it_writes_the_report_writes_it_again(
    s3_search: Search, proxy: FaultyProxy, undisturbed: Undisturbed
) -> None:
    s3_search.start()
    wait_for_request(s3_search, proxy, "PUT", "/trials/")
    proxy.delay(1.0, methods=("PUT",))  # else the whole report is written between two looks
    wait_for_request(s3_search, proxy, "PUT", "/report/")
    wait_for_request(s3_search, proxy, "PUT", "/report/")
    s3_search.kill()
    killed = time.monotonic()
    assert not objects(s3_search, "experiments/*/report/report.html"), "the page was there already"
    proxy.calm()
    s3_search.start().end()
    assert "2 of 2 trials are done already" in s3_search.said
    assert "loading the model" not in s3_search.said
    check_whole_on_s3(s3_search, undisturbed)
    seconds = time.monotonic() - killed
    record("the driver is killed while it writes the report", tokens_lost=s3_search.lost_tokens(), seconds=seconds)
