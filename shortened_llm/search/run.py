"""A whole search, in the order in which data moves."""

from collections.abc import Sequence
from dataclasses import replace

from shortened_llm.config import SearchConfig
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.logs import LOGGER
from shortened_llm.models.stage import stage_model
from shortened_llm.pruning.plan import dense_plan, make_plans
from shortened_llm.records import BlockScores, TrialSpec
from shortened_llm.scoring.job import ScoringJob, scoring_jobs
from shortened_llm.scoring.score import score_blocks
from shortened_llm.search.capacity import Capacity, driver_demand, evaluators_may_idle
from shortened_llm.search.dress_rehearsal import rehearse_plans
from shortened_llm.search.epochs import many_epochs
from shortened_llm.search.equal_seconds import equal_seconds_trials
from shortened_llm.search.experiment import own_experiment, publish_report, write_config, write_experiment
from shortened_llm.search.finish import measure_report, submit_dense
from shortened_llm.search.planned import planned_experiment, planned_trials
from shortened_llm.search.preflight import SearchFacts, check_unchanged
from shortened_llm.search.prepare import score, selection_units, start_packing
from shortened_llm.search.progress import ProgressLog
from shortened_llm.search.provenance import provenance, publish_cards
from shortened_llm.search.space import SearchSpace, distinct
from shortened_llm.search.trackers import check_node
from shortened_llm.search.trial import TrialContext, read_result
from shortened_llm.search.tuner import TrialLogs, run_trials
from shortened_llm.storage.layout import TUNE
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join


class TrialsFailedError(RuntimeError):
    """Some trials have no result. The report is written all the same."""


def run_search(config: SearchConfig, facts: SearchFacts, store: Store, capacity: Capacity) -> str:
    """Run an experiment, or what is left of it, on the connected Ray cluster; returns the report's path or URL.

    Args:
        facts: what the checks found, so that a data set cannot change between check and run.
        capacity: of the cluster, also when it has grown.

    Raises:
        BadInputError: another driver runs this experiment.
        TrialsFailedError: with the report's place and the first cause.
    """
    experiment_url = store.experiment_url(config.experiment)
    roles = facts.roles
    check_node(config.tracking)
    with own_experiment(store, config.experiment) as driver, ProgressLog(config.experiment) as log:
        check_unchanged(config, store)  # once more: another driver may have begun while this one waited
        staging = log.about("model")
        dense = stage_model(config.model, store, on_progress=staging)
        staging(None)
        pool = EvaluationPool.start(
            config.experiment,
            store,
            config.resources,
            dtype=config.model.dtype,
            batch_size=config.evaluation.batch_size,
            may_idle=evaluators_may_idle(config, capacity),
        )
        dense_scores = submit_dense(config, dense, roles, pool, log.about("dense"))
        packing = start_packing(dense, config, roles, store, log.about("prepare"))
        scoring = scoring_jobs(config, dense, roles.calibration, facts.counts)
        scores = score(scoring, config, store, log.about("prepare"))
        data = packing()
        if data.corpus and (passes := many_epochs(config.retraining, data.corpus)):
            LOGGER.warning("%s", passes)
        baseline = dense_scores()
        write_config(store, config)
        space = SearchSpace(
            dense=dense,
            data=data,
            retraining=config.retraining,
            selection=selection_units(config, roles),
            dtype=config.model.dtype,
            export_dtype=config.model.exported_dtype,
        )
        specs = _trials(config, facts, space, scores, scoring[0], store)
        context = TrialContext(
            space=space,
            store=store,
            experiment=replace(store, url=experiment_url),
            pool=pool,
            resources=config.resources,
            max_failures=config.search.max_failures,
            provenance=provenance(config),
            driver=driver,
            max_concurrent_trials=config.search.max_concurrent_trials,
            driver_demand=driver_demand(capacity),
        )
        experiment = planned_experiment(
            config, context.provenance, dense, baseline, roles, scores, specs, data, facts.size.without(())
        )
        write_experiment(store, experiment)
        logs = TrialLogs(
            experiment=config.experiment,
            tune_url=join(experiment_url, TUNE),
            tracking=config.tracking,
            progress=log.about("search"),
        )
        failures = run_trials(specs, context, logs)
        if config.search.equal_seconds:
            results = {s.fingerprint: result for s in specs if (result := read_result(store, s)) is not None}
            timed = distinct(equal_seconds_trials(space, specs, results))
            experiment = replace(experiment, trials=(*experiment.trials, *planned_trials(timed)))
            write_experiment(store, experiment)
            failures |= run_trials(timed, context, logs, before=len(specs))
        experiment = measure_report(experiment, config, context, roles, failures, log.about("report"))
        write_experiment(store, experiment)
        report = publish_report(store, experiment)
        publish_cards(experiment)
    if failures:
        cause = next(iter(failures.values())).cause
        raise TrialsFailedError(
            f"{len(failures)} of {len(experiment.trials)} trials failed ({cause}); report: {report}"
        )
    return report


def _trials(
    config: SearchConfig,
    facts: SearchFacts,
    space: SearchSpace,
    scores: Sequence[BlockScores],
    job: ScoringJob,
    store: Store,
) -> tuple[TrialSpec, ...]:
    """Every trial of the configuration; raises `BadInputError` where the architecture cannot lose such blocks."""
    size = facts.size
    plans, controls = make_plans(config.search, scores, size), config.search.controls
    of_random = [score_blocks(control, job, store, num_shards=1) for control in controls if control == "random"]
    random = make_plans(config.search, of_random, size)
    rehearse_plans(facts.model_config, facts.tokenizer, [plan.transforms for plan in (*plans, *random)])
    dense = [dense_plan(size)] if "dense" in controls else []
    specs = distinct((*space.trials(plans), *space.controls("dense", dense), *space.controls("random", random)))
    labels = sum(len(plan.labels) for plan in plans)
    LOGGER.info("%d labels are %d distinct plans: %d trials", labels, len(plans), len(specs))
    return specs
