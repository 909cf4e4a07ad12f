"""The stages of a search, one after another in one process, for tests that need what a search leaves."""

from dataclasses import replace

from transformers import PreTrainedModel

from jobs.prune import plans_here
from shortened_llm.config import ExperimentConfig
from shortened_llm.config.metric import objective
from shortened_llm.data.packing import pack_tokens
from shortened_llm.data.sources import text_roles
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.models.directory import load_config, load_tokenizer, model_directory
from shortened_llm.models.stage import stage_model
from shortened_llm.models.view import size_of
from shortened_llm.records import (
    EvalScores,
    ModelRef,
    RetrainedModel,
    Scores,
    TokenMixture,
    TrainingData,
    TrialResult,
    TrialSpec,
    UnitScores,
)
from shortened_llm.retraining.export import export_sharded, write_run
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.progress import RunProgress
from shortened_llm.scoring.job import ScoringJob, rankings, scoring_jobs
from shortened_llm.scoring.measure import measure, pending_work
from shortened_llm.scoring.score import score_all
from shortened_llm.search.baseline import DenseScores
from shortened_llm.search.packing import packing_jobs
from shortened_llm.search.planned import planned_experiment, planned_trials
from shortened_llm.search.preflight_settings import ModelFacts, asked_sizes
from shortened_llm.search.rounds import rescoring
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.stored.experiment import write_experiment
from shortened_llm.search.stored.provenance import provenance
from shortened_llm.search.strategies.grid import propose_grid
from shortened_llm.search.strategies.strategy import Candidates, Outcomes
from shortened_llm.search.trial import write_result
from shortened_llm.search.units import selection_units
from shortened_llm.storage.layout import RETRAINED
from shortened_llm.storage.store import Store
from tests.retraining.test_loop import Recorder, run


def small(values: dict) -> dict:
    """A configuration of the tiny model, made so small that its trials take seconds; some train, some do not."""
    values["retraining"] |= {"methods": ["none", "cpt"], "tokens": 2048, "validation_sequences": 0}
    values["evaluation"]["selection"]["perplexity"][0]["max_tokens"] = 512
    return values


class Pipeline:
    """A search's stages, one after another in this process."""

    def __init__(self, config: ExperimentConfig, store: Store) -> None:
        self.config, self.store, self.roles = config, store, text_roles(config)
        self.dense = stage_model(config.model, store)
        model_config = load_config(model_directory(self.dense))
        size = size_of(model_config, config.model.exported_dtype)
        asked = asked_sizes(config, model_config, size)
        counts = ModelFacts(model_config=model_config, size=size, requests=asked).counts
        self.jobs = scoring_jobs(config, self.dense, self.roles.calibration, counts)
        self.scores = self._measured(self.jobs)
        self.data = TrainingData(corpus=self._pack(), instructions=None, validation=None)
        self.units = selection_units(config, self.roles)
        self.space = SearchSpace(
            dense=self.dense,
            data=self.data,
            retraining=config.retraining,
            selection=self.units,
            objective=objective(config.search),
            rounds=config.search.rounds,
            rescoring=rescoring(self.scores, rankings(self.jobs), size),
            dtype=config.model.dtype,
            export_dtype=config.model.exported_dtype,
        )
        self.candidates = Candidates(plans=plans_here(config, self.jobs, self.scores, size, store))
        self.specs = propose_grid(self.space, self.candidates, Outcomes(specs=(), results={}))
        dense = DenseScores(selection=self.evaluate(self.dense), report=EvalScores())
        experiment = planned_experiment(
            config, self.roles, self.space, dense, self.scores, provenance(config), size.without(())
        )
        write_experiment(store, replace(experiment, trials=planned_trials(self.specs)))

    def _measured(self, jobs: tuple[ScoringJob, ...]) -> tuple[Scores, ...]:
        for unit, job in pending_work(jobs, self.store, 1):
            measure(unit, job, self.store, device="cpu", memory_gib=None)
        return score_all(jobs, self.store)

    def _pack(self) -> TokenMixture:
        tokenizer = load_tokenizer(model_directory(self.dense))
        jobs = packing_jobs(self.dense, self.config.retraining, self.roles).corpus
        return TokenMixture(parts=tuple(pack_tokens(job, tokenizer, self.store) for job in jobs))

    def evaluate(self, ref: ModelRef) -> EvalScores:
        return evaluate(ref, self.units, self.store, LoadedModels(self.config.model.dtype, "cpu"), batch_size=8)

    def run(self, job: RetrainingJob) -> RetrainedModel:
        """Train, export, record; as a worker does."""
        return self.written(job, *run(job, Recorder()))

    def written(self, job: RetrainingJob, model: PreTrainedModel, progress: RunProgress) -> RetrainedModel:
        """What a run made, exported and recorded."""
        exported = export_sharded(model, job, self.store, rank=0)
        assert exported is not None
        write_run(job, exported, progress, self.store)
        stored = self.store.read(RETRAINED, job.fingerprint, RetrainedModel)
        assert stored is not None
        return stored

    def trial(self, spec: TrialSpec) -> None:
        view, model = self.dense.view(spec.plan.transforms), self.dense.view(spec.start)
        runs = []
        for index, planned in enumerate(self.space.runs(spec)):
            if count := spec.removed_before(index):
                (scores,) = self._measured((self.space.scoring(spec, model, count),))
                assert isinstance(scores, UnitScores)
                model = model.without(scores.unit, scores.removed(count))
            runs.append(self.run(self.space.job(planned, model)))
            model = runs[-1].model
        result = TrialResult(
            fingerprint=spec.fingerprint, model=model, runs=tuple(runs), before=self.evaluate(view),
            after=self.evaluate(model), seconds=1.0, plan=self.space.made(spec, runs) if spec.rounds else None,
        )  # fmt: skip
        write_result(self.store, result, self.space.trial_identity(spec))
