"""Report scores of all models, after the search."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray

from shortened_llm.config import ExperimentConfig
from shortened_llm.data.sources import TextRoles
from shortened_llm.errors import last_line
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.evaluation.units import EfficiencyUnit, Unit, unit_fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.records import (
    EvalScores,
    Experiment,
    MissingScore,
    TrialFailure,
)
from shortened_llm.reporting.rows import best_of_each_target, best_of_each_way, quoted
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.search.trial import TrialContext, read_result
from shortened_llm.search.units import choice_units, report_units


def measure_report(
    experiment: Experiment,
    config: ExperimentConfig,
    context: TrialContext,
    roles: TextRoles,
    failures: Mapping[str, TrialFailure],
    progress: Progress,
) -> Experiment:
    """The experiment with its results and report scores: of every plan, before and after retraining, on the report
    texts, but for trials that were stopped at a rung; of the best of each size and the controls on all else that the
    report asks for. The best of each way to a size is timed.

    Args:
        experiment: from `planned_experiment`.
        failures: by trial fingerprint.
    """
    dense, pool, dtype = context.space.dense, context.pool, config.model.dtype
    texts: tuple[Unit, ...] = report_units(config, roles)
    trials = [
        replace(
            trial,
            result=read_result(context.store, trial.spec),
            failure=failures[trial.spec.fingerprint].cause if trial.spec.fingerprint in failures else None,
        )
        for trial in experiment.trials
    ]
    best = {trial.spec.fingerprint for trial in best_of_each_target(trials).values()}
    timed = {trial.spec.fingerprint for trial in best_of_each_way(trials)}
    controls = {trial.spec.fingerprint for trial in trials if trial.spec.control}
    chosen = best | controls
    scored = quoted(trials)
    progress(f"scoring {len(scored)} of {len(trials)} trials")
    pending = {}
    for index, trial in enumerate(trials):
        if trial.result is None or trial.spec.fingerprint not in scored:
            continue
        scoring = progress.about(f"evaluate {trial.spec.name}")
        units = (*texts, *choice_units(config, roles, dense)) if trial.spec.fingerprint in chosen else texts
        before = pool.submit(dense.view(trial.spec.plan.transforms), texts, scoring)
        pending[index] = (before, pool.submit(trial.result.model, units, scoring), units)
    for number, (index, (before, after, units)) in enumerate(pending.items(), start=1):
        before_scores, after_scores = _result(pool, before, texts, dtype), _result(pool, after, units, dtype)
        for missing in (*before_scores.missing, *after_scores.missing):
            LOGGER.error("%s of %s is missing: %s", missing.name, trials[index].spec.name, missing.cause)
        trials[index] = replace(trials[index], before=before_scores, after=after_scores)
        progress(f"scored {number}/{len(pending)} trials")
    if config.evaluation.report.efficiency:
        for index, trial in enumerate(trials):  # one after the other: timings must not disturb one another
            if trial.spec.fingerprint in timed and trial.result is not None:
                unit = EfficiencyUnit(settings=config.evaluation.efficiency, dense=dense)
                timing = progress.about(f"time {trial.spec.name}")
                found = _result(pool, pool.submit(trial.result.model, (unit,), timing), (unit,), dtype)
                missing_scores = (*trial.after.missing, *found.missing)
                after = replace(trial.after, efficiency=found.efficiency, missing=missing_scores)
                trials[index] = replace(trial, after=after)
    progress(None)
    return replace(experiment, trials=tuple(trials))


def _result(
    pool: EvaluationPool, submitted: "ray.ObjectRef[EvalScores]", units: Sequence[Unit], dtype: str
) -> EvalScores:
    """One model that cannot be scored must not cost the others their report."""
    try:
        return pool.result(submitted)
    except Exception as error:
        lost = {unit_fingerprint(unit, dtype): unit.name for unit in units}
        cause = last_line(error)
        return EvalScores(missing=tuple(MissingScore(unit=u, name=name, cause=cause) for u, name in lost.items()))
