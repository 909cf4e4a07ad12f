"""A whole search, in the order in which data moves."""

import time
from collections.abc import Iterable
from dataclasses import replace

from shortened_llm.config import ExperimentConfig
from shortened_llm.records import TrialSpec
from shortened_llm.search.budget import Allowance
from shortened_llm.search.cluster.capacity import Capacity, driver_demand, evaluators_may_idle
from shortened_llm.search.cluster.progress import ProgressLog
from shortened_llm.search.cluster.rehearsal import rehearse
from shortened_llm.search.cluster.trackers import check_node
from shortened_llm.search.cluster.tuner import run_trials
from shortened_llm.search.estimate import Shapes
from shortened_llm.search.finish import measure_report
from shortened_llm.search.forecast import known_speeds
from shortened_llm.search.planned import planned_experiment, planned_trials
from shortened_llm.search.preflight import Facts
from shortened_llm.search.preflight_settings import check_unchanged
from shortened_llm.search.prepare import Prepared, prepare
from shortened_llm.search.proposals import Proposals
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.stored.experiment import own_experiment, publish_report, write_config, write_experiment
from shortened_llm.search.stored.provenance import provenance, publish_cards
from shortened_llm.search.strategies import sampler, strategies
from shortened_llm.search.strategies.rungs import left_behind
from shortened_llm.search.trial import TrialContext
from shortened_llm.storage.layout import stable_url
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete


class TrialsFailedError(RuntimeError):
    """Some trials have no result. The report is written all the same."""


def run_search(config: ExperimentConfig, facts: Facts, store: Store, capacity: Capacity) -> str:
    """Run an experiment, or what is left of it, on the connected Ray cluster; returns the report's path or URL.

    Args:
        facts: what the checks found, so that a data set cannot change between check and run.
        capacity: of the cluster, also when it has grown.

    Raises:
        BadInputError: another driver runs this experiment.
        TrialsFailedError: with the report's place and the first cause.
    """
    started = time.monotonic()
    check_node(config.tracking)
    with own_experiment(store, config.experiment) as driver, ProgressLog(config.experiment) as log:
        check_unchanged(config, store)  # once more: another driver may have begun while this one waited
        prepared = prepare(config, facts, store, capacity, log)
        write_config(store, config)
        context = _context(config, prepared, store, capacity, driver)
        if config.search.rehearses(config.resources):
            rehearse(prepared, context, log.about("rehearsal"))
        experiment = planned_experiment(
            config, facts.roles, prepared.space, prepared.baseline, prepared.scores, context.provenance,
            facts.size.without(()),
        )  # fmt: skip

        def record(proposals: Proposals) -> None:
            write_experiment(store, replace(experiment, trials=planned_trials(proposals.specs)))
            _drop_checkpoints(config, prepared, proposals, store)

        allowance = _allowance(config, facts, context, capacity, started)
        proposals = Proposals(
            strategies(config.search), prepared.space, prepared.candidates, store, on_proposed=record,
            **({"refuses": allowance.refuses} if allowance else {}),
        )  # fmt: skip
        failures = run_trials(proposals, context, config.tracking, log)
        _drop_checkpoints(config, prepared, proposals, store)
        spent = (allowance.note(proposals.outcomes, len(proposals.left_out)),) if allowance else ()
        experiment = replace(
            experiment, trials=planned_trials(proposals.specs, proposals.left_out), notes=(*experiment.notes, *spent)
        )
        experiment = measure_report(experiment, config, context, facts.roles, failures, log.about("report"))
        write_experiment(store, experiment)
        report = publish_report(store, experiment)
        publish_cards(experiment)
    if failures:
        cause = next(iter(failures.values())).cause
        raise TrialsFailedError(
            f"{len(failures)} of {len(experiment.trials)} trials failed ({cause}); report: {report}"
        )
    return report


def _drop_checkpoints(config: ExperimentConfig, prepared: Prepared, proposals: Proposals, store: Store) -> None:
    """Delete the states of runs that no trial of this search will continue, unless the user keeps them. Another search
    in the same storage that would have continued one trains that run anew."""
    if not config.search.rungs or config.retraining.keep_stable_checkpoint:
        return
    space, search = prepared.space, config.search
    left = left_behind(space, prepared.candidates, proposals.outcomes, rungs=search.rungs, sampler=sampler(search))
    given_up = {spec.fingerprint for spec in left}
    needed = _kept_states(space, (spec for spec in proposals.specs if spec.fingerprint not in given_up))
    for state in _kept_states(space, left) - needed:  # candidates whose first runs are alike share one
        delete(stable_url(store.url, state))


def _kept_states(space: SearchSpace, specs: Iterable[TrialSpec]) -> set[str]:
    return {run.stable_fingerprint for spec in specs for run in space.runs(spec)[: space.num_kept(spec)]}


def _context(
    config: ExperimentConfig, prepared: Prepared, store: Store, capacity: Capacity, driver: str
) -> TrialContext:
    return TrialContext(
        space=prepared.space,
        store=store,
        experiment=replace(store, url=store.experiment_url(config.experiment)),
        pool=prepared.pool,
        resources=config.resources,
        max_failures=config.search.max_failures,
        provenance=provenance(config),
        driver=driver,
        max_concurrent_trials=config.search.max_concurrent_trials,
        driver_demand=driver_demand(capacity),
        evaluates_beside=evaluators_may_idle(config, capacity),
    )


def _allowance(
    config: ExperimentConfig, facts: Facts, context: TrialContext, capacity: Capacity, started: float
) -> Allowance | None:
    """None where the search has no budget."""
    if config.search.budget is None:
        return None
    shapes = Shapes(facts.model_config, config.model.dtype)
    return Allowance(
        budget=config.search.budget,
        space=context.space,
        shapes=shapes,
        accelerators=config.resources.accelerators,
        speeds=known_speeds(config, shapes, context.store, capacity).of,
        experiment=context.experiment,
        started=started,
    )
