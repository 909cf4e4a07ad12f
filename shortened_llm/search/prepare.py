"""What all trials share, computed once: the staged model, its scores, packed tokens, block scores, plans."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.config import Control, ExperimentConfig
from shortened_llm.config.metric import objective
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.logs import LOGGER
from shortened_llm.models.stage import stage_model
from shortened_llm.pruning.plan import Choice, choices, dense_plan, make_plans, one_of_each_target
from shortened_llm.records import PrunePlan, Scores
from shortened_llm.scoring.job import ScoringJob, rankings, scoring_jobs
from shortened_llm.scoring.job import by_ranking as jobs_by_ranking
from shortened_llm.scoring.score import score_one
from shortened_llm.search.baseline import DenseScores, submit_dense
from shortened_llm.search.cluster.capacity import Capacity, evaluators_may_idle
from shortened_llm.search.cluster.progress import Progress, ProgressLog
from shortened_llm.search.epochs import many_epochs
from shortened_llm.search.packing import start_packing
from shortened_llm.search.preflight import Facts
from shortened_llm.search.preflight_toy import try_plans
from shortened_llm.search.rounds import Rescoring, by_ranking, rescoring, rounds_to
from shortened_llm.search.scoring import compute_all, score
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.strategies.strategy import Candidates
from shortened_llm.search.units import selection_units
from shortened_llm.search.works import plan_works, with_works
from shortened_llm.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the trials of a search begin with."""

    space: SearchSpace
    pool: EvaluationPool
    baseline: DenseScores
    scores: tuple[Scores, ...]
    candidates: Candidates


def prepare(config: ExperimentConfig, facts: Facts, store: Store, capacity: Capacity, log: ProgressLog) -> Prepared:
    """Compute what is not stored yet, as much at a time as the cluster takes.

    Raises:
        BadInputError: what the dense model is to be measured on cannot be, or the architecture cannot lose such blocks.
    """
    with log.about("model").under_way():
        dense = stage_model(config.model, store)
    pool = EvaluationPool.start(
        config.experiment,
        store,
        config.resources,
        dtype=config.model.dtype,
        batch_size=config.evaluation.batch_size,
        may_idle=evaluators_may_idle(config, capacity),
    )
    dense_scores = submit_dense(config, dense, facts.roles, pool, log.about("dense"))
    packing = start_packing(dense, config, facts.roles, store, log.about("prepare"))
    jobs = scoring_jobs(config, dense, facts.roles.calibration, facts.counts)
    scores = score(jobs, config.resources, store, log.about("prepare"))
    data = packing()
    if data.corpus and (passes := many_epochs(config.retraining, data.corpus)):
        LOGGER.warning("%s", passes)
    baseline = dense_scores()
    given = rescoring(scores, rankings(jobs), facts.size) if max(config.search.rounds) > 1 else None
    space = SearchSpace(
        dense=dense,
        data=data,
        retraining=config.retraining,
        selection=selection_units(config, facts.roles),
        objective=objective(config.search),
        rounds=config.search.rounds,
        rescoring=given,
        dtype=config.model.dtype,
        export_dtype=config.model.exported_dtype,
    )
    candidates = _candidates(config, facts, scores, jobs, store, given, log.about("prepare"))
    return Prepared(space=space, pool=pool, baseline=baseline, scores=scores, candidates=candidates)


def _candidates(
    config: ExperimentConfig,
    facts: Facts,
    scores: Sequence[Scores],
    jobs: Sequence[ScoringJob],
    store: Store,
    given: Rescoring | None,
    progress: Progress,
) -> Candidates:
    """Every plan of the configuration, tried on a toy of the model, as is the first part of those in rounds."""
    chosen, drawn = choices(config.search, scores, facts.size), tuple[Choice, ...]()
    wanted = plan_works(chosen, jobs_by_ranking(scores, jobs), facts.size)
    if "random" in config.search.controls:
        of_units = {job.unit: job for job in jobs[::-1]}.values()
        by_chance = {job: score_one("random", job, store) for job in of_units}
        drawn = choices(config.search, by_chance.values(), facts.size)
        wanted |= plan_works(drawn, {one.ranking: job for job, one in by_chance.items()}, facts.size)
    every = {choice.transforms for choice in (*chosen, *drawn)} | {()}
    if given is not None:
        numbers = [number for number in config.search.rounds if number > 1]
        parts = [part for plan in make_plans(chosen, facts.size) for part in by_ranking(plan)]
        every |= {rounds_to(part, number, given).first for part in parts for number in numbers}
    try_plans(facts.model_config, facts.tokenizer, sorted(every, key=str))
    compute_all(wanted, config.resources, store, progress)
    plans, random = (make_plans(with_works(of, wanted, store), facts.size) for of in (chosen, drawn))
    of_control = {"dense": (dense_plan(facts.size),), "random": random, "scratch": one_of_each_target(plans)}
    controls: dict[Control, tuple[PrunePlan, ...]] = {name: of_control[name] for name in config.search.controls}
    LOGGER.info("%d labels are %d distinct plans", sum(len(plan.labels) for plan in plans), len(plans))
    return Candidates(plans=plans, controls=controls)
