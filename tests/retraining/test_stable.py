"""The kept checkpoint, on a local directory and on S3: found by longer runs alone, and whole."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from ray.train import Checkpoint

from shortened_llm.retraining.checkpoint import gathered, newest_usable
from shortened_llm.retraining.manifest import checkpoint_name, step_of
from shortened_llm.retraining.stable import keeps_stable, stable_url, stable_urls
from shortened_llm.retraining.train import train
from shortened_llm.retraining.worker import kept_checkpoints, newest_first
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete, is_local, join
from tests.conftest import MakeJob
from tests.retraining.conftest import Recorder

WSD = {"cpt": {"schedule": "wsd", "warmup_steps": 1, "decay_ratio": 0.4}, "checkpoint_tokens": 2**20}


@pytest.mark.usefixtures("process_group")
def test_a_longer_run_finds_it_whole(make_job: MakeJob, store: Store, logged: pytest.LogCaptureFixture) -> None:
    short, longer = (make_job(**WSD, tokens=tokens, keep_stable_checkpoint=True) for tokens in (8192, 16_384))
    recorder = Recorder()
    train(short, device=torch.device("cpu"), resume_from=None, host=recorder)
    steps = [point.step for point in recorder.points if keeps_stable(short, point.step)]
    assert steps == [5]
    url = stable_url(short, store, checkpoint_name(5, "abc"))
    upload_directory(recorder.checkpoints[0].directory, url)

    assert stable_urls(longer, store) == [url]
    assert stable_urls(make_job(**WSD, tokens=4096), store) == []  # decays before
    assert stable_urls(make_job(**WSD, tokens=16_384, seed=1), store) == []
    (kept,) = gathered(kept_checkpoints(longer, store))[0]
    with newest_usable([("kept", kept.as_directory)], part=0, parts=1) as directory:
        assert directory is not None
        if not is_local(url):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:  # worker of the node
                assert another.submit(_place_of, kept).result() == directory
        extended = Recorder()
        train(longer, device=torch.device("cpu"), resume_from=directory, host=extended)
    assert extended.points[0].step == 6
    delete(join(url, "__0_0.distcp"))
    assert kept_checkpoints(longer, store) == []
    assert "__0_0.distcp" in logged.messages[-1]


def _place_of(checkpoint: Checkpoint) -> Path:
    with checkpoint.as_directory() as directory:
        return Path(directory)


def test_the_newest_comes_first_and_a_run_s_own_before_a_kept_one() -> None:
    def at(*places: tuple[str, int]) -> list[Checkpoint]:
        return [Checkpoint(f"/{place}/{checkpoint_name(step, 'ab')}") for place, step in places]

    found = newest_first(at(("own", 150), ("own", 100)), at(("kept", 200), ("kept", 100)))
    assert [(Path(one.path).parts[1], step_of(Path(one.path).name)) for one in found] == [
        ("kept", 200), ("own", 150), ("own", 100), ("kept", 100),
    ]  # fmt: skip
