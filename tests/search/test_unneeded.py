"""Clean-up on the records of every stage of a small pipeline, which none of this test's own hands wrote."""

import datetime
from dataclasses import replace

import pytest

from shortened_llm.config import parse_config
from shortened_llm.records import TrialResult
from shortened_llm.search.stored.unneeded import find_unneeded, remove
from shortened_llm.storage.layout import EVALUATIONS, RETRAINED, TRIALS
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete, find_files
from tests.search.pipeline import Pipeline, small

AT_ONCE = datetime.timedelta()


@pytest.fixture
def pipeline(store: Store, tiny_values: dict) -> Pipeline:
    return Pipeline(parse_config(small(tiny_values)), store)


@pytest.mark.usefixtures("process_group")
def test_what_a_search_left_is_needed_until_its_experiment_goes(pipeline: Pipeline) -> None:
    store = pipeline.store
    for spec in pipeline.specs:
        pipeline.trial(spec)
    assert find_unneeded(store, min_age=AT_ONCE) == []
    # A run that belongs to no trial of the experiment, and a score of its model.
    spec = pipeline.specs[-1]
    (run,) = pipeline.space.runs(replace(spec, recipes=(replace(spec.recipes[0], seed=1),)))
    other = pipeline.run(pipeline.space.job(run, pipeline.dense.view(spec.plan.transforms)))
    pipeline.evaluate(other.model)
    found = find_unneeded(store, min_age=AT_ONCE)
    assert [thing.kind for thing in found] == [EVALUATIONS, RETRAINED]
    assert found[1].path.endswith(other.model.fingerprint)
    remove(store, found)
    assert find_unneeded(store, min_age=AT_ONCE) == []
    delete(store.experiment_url("test"))
    remove(store, find_unneeded(store, min_age=AT_ONCE))
    assert find_files(store.url) == []


@pytest.mark.usefixtures("process_group")
def test_an_untrained_trial_trains_nothing_and_copies_nothing(pipeline: Pipeline) -> None:
    (bare,) = [spec for spec in pipeline.specs if spec.method == "none" and "ppl" in spec.plan.name]
    assert pipeline.space.runs(bare) == ()
    pipeline.trial(bare)
    result = pipeline.store.read(TRIALS, bare.fingerprint, TrialResult)
    assert result is not None
    assert (result.model, result.runs, result.tokens) == (pipeline.dense.view(bare.plan.transforms), (), 0)
    assert result.before == result.after
    assert not [file for file in find_files(pipeline.store.url) if file.path.startswith(f"{RETRAINED}/")]
