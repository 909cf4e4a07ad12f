"""Clean-up on the records of every stage of a small pipeline, which none of this test's own hands wrote."""

import datetime
from dataclasses import replace

import pytest

from shortened_llm.config import SearchConfig, parse_config
from shortened_llm.data.packing import pack_tokens
from shortened_llm.data.sources import TextRoles, text_roles
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.models.directory import load_config, load_tokenizer, model_directory
from shortened_llm.models.stage import stage_model
from shortened_llm.models.view import size_of
from shortened_llm.pruning.plan import make_plans
from shortened_llm.records import (
    BlockScores,
    EvalScores,
    ModelRef,
    RetrainedModel,
    TokenMixture,
    TrainingData,
    TrialResult,
    TrialSpec,
)
from shortened_llm.retraining.export import export_sharded, write_run
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.scoring.job import scoring_jobs
from shortened_llm.scoring.measure import measure, pending_work
from shortened_llm.scoring.score import score_all
from shortened_llm.search.experiment import write_experiment
from shortened_llm.search.finish import DenseScores
from shortened_llm.search.planned import planned_experiment
from shortened_llm.search.prepare import packing_jobs, selection_units
from shortened_llm.search.provenance import provenance
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.trial import write_result
from shortened_llm.search.unneeded import find_unneeded, remove
from shortened_llm.storage.layout import EVALUATIONS, RETRAINED, TRIALS
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete, find_files
from tests.retraining.test_loop import Recorder, run

AT_ONCE = datetime.timedelta()


class Pipeline:
    """A search's stages, one after another in this process."""

    def __init__(self, config: SearchConfig, store: Store) -> None:
        self.config, self.store, self.roles = config, store, text_roles(config)
        self.dense = stage_model(config.model, store, on_progress=_ignore)
        self.scores = self._score(self.roles)
        self.data = TrainingData(corpus=self._pack(), instructions=None, validation=None)
        self.units = selection_units(config, self.roles)
        self.space = SearchSpace(
            dense=self.dense, data=self.data, retraining=config.retraining, selection=self.units,
            dtype=config.model.dtype, export_dtype=config.model.exported_dtype,
        )  # fmt: skip
        size = size_of(load_config(model_directory(self.dense)), self.space.export_dtype)
        plans = make_plans(config.search, self.scores, size)
        self.specs = self.space.trials(plans)
        dense = DenseScores(selection=self.evaluate(self.dense), report=EvalScores())
        experiment = planned_experiment(
            config,
            provenance(config),
            self.dense,
            dense,
            self.roles,
            self.scores,
            self.specs,
            self.data,
            size.without(()),
        )
        write_experiment(store, experiment)

    def _score(self, roles: TextRoles) -> tuple[BlockScores, ...]:
        jobs = scoring_jobs(self.config, self.dense, roles.calibration, (2,))
        for unit, job in pending_work(jobs, self.store, 1):
            measure(unit, job, self.store, device="cpu", memory_gib=None, on_progress=_ignore)
        return score_all(jobs, self.store)

    def _pack(self) -> TokenMixture:
        tokenizer = load_tokenizer(model_directory(self.dense))
        jobs = packing_jobs(self.dense, self.config.retraining, self.roles).corpus
        return TokenMixture(parts=tuple(pack_tokens(job, tokenizer, self.store, on_progress=_ignore) for job in jobs))

    def evaluate(self, ref: ModelRef) -> EvalScores:
        return evaluate(
            ref, self.units, self.store, LoadedModels(self.config.model.dtype, "cpu"), batch_size=8, on_progress=_ignore
        )

    def run(self, job: RetrainingJob) -> RetrainedModel:
        """Train, export, record; as a worker does."""
        model, progress = run(job, Recorder())
        exported = export_sharded(model, job, self.store, rank=0)
        assert exported is not None
        write_run(job, exported, progress, self.store)
        stored = self.store.read(RETRAINED, job.fingerprint, RetrainedModel)
        assert stored is not None
        return stored

    def trial(self, spec: TrialSpec) -> None:
        view = self.dense.view(spec.plan.transforms)
        runs = tuple(self.run(job) for job in self.space.jobs(spec))
        model = runs[-1].model if runs else view
        result = TrialResult(
            fingerprint=spec.fingerprint, model=model, runs=runs, before=self.evaluate(view),
            after=self.evaluate(model), seconds=1.0,
        )  # fmt: skip
        write_result(self.store, result, self.space.trial_identity(spec))


def _ignore(*_: object) -> None:
    """Progress of a few seconds is told to nobody."""


@pytest.fixture
def pipeline(store: Store, tiny_values: dict) -> Pipeline:
    tiny_values["retraining"] |= {"methods": ["none", "cpt"], "tokens": 2048, "validation_sequences": 0}
    tiny_values["evaluation"]["selection"]["perplexity"][0]["max_tokens"] = 512
    return Pipeline(parse_config(tiny_values), store)


@pytest.mark.usefixtures("process_group")
def test_what_a_search_left_is_needed_until_its_experiment_goes(pipeline: Pipeline) -> None:
    store = pipeline.store
    for spec in pipeline.specs:
        pipeline.trial(spec)
    assert find_unneeded(store, min_age=AT_ONCE) == []
    # A run that belongs to no trial of the experiment, and a score of its model.
    (job,) = pipeline.space.jobs(pipeline.specs[-1])
    other = pipeline.run(replace(job, recipe=replace(job.recipe, seed=1)))
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
    assert pipeline.space.jobs(bare) == ()
    pipeline.trial(bare)
    result = pipeline.store.read(TRIALS, bare.fingerprint, TrialResult)
    assert result is not None
    assert (result.model, result.runs, result.tokens) == (pipeline.dense.view(bare.plan.transforms), (), 0)
    assert result.before == result.after
    assert not [file for file in find_files(pipeline.store.url) if file.path.startswith(f"{RETRAINED}/")]
