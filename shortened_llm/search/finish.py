"""Report scores: the dense model's before the search, all others' after it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import ray

from shortened_llm.config import SearchConfig
from shortened_llm.data.sources import TextRoles
from shortened_llm.errors import BadInputError, last_line
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.evaluation.units import EfficiencyUnit, Unit, unit_fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.records import (
    EvalScores,
    Experiment,
    MissingScore,
    ModelRef,
    TrialFailure,
)
from shortened_llm.reporting.rows import best_of_each_target
from shortened_llm.search.prepare import choice_units, report_units, selection_units
from shortened_llm.search.progress import Progress
from shortened_llm.search.trial import TrialContext, read_result


class ScoresMissingError(RuntimeError):
    """What cannot be measured of the dense model cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseScores:
    """Of the model that everything is compared with."""

    selection: EvalScores
    report: EvalScores


def submit_dense(
    config: SearchConfig, dense: ModelRef, roles: TextRoles, pool: EvaluationPool, progress: Progress
) -> Callable[[], DenseScores]:
    """Begin to score the dense model on everything; returns what waits for the scores.

    Done first, so that a text or task that cannot be scored ends the search before it trains.
    """
    on_progress = progress.about("evaluate the dense model")
    selection = pool.submit(dense, selection_units(config, roles), on_progress)
    report = pool.submit(dense, (*report_units(config, roles), *choice_units(config, roles, dense)), on_progress)

    def wait() -> DenseScores:
        scores = DenseScores(selection=pool.result(selection), report=pool.result(report))
        for missing in (*scores.selection.missing, *scores.report.missing):
            if missing.is_bad_input:
                raise BadInputError(missing.cause)
            raise ScoresMissingError(f"{missing.name} of the dense model: {missing.cause}")
        return scores

    return wait


def measure_report(
    experiment: Experiment,
    config: SearchConfig,
    context: TrialContext,
    roles: TextRoles,
    failures: Mapping[str, TrialFailure],
    progress: Progress,
) -> Experiment:
    """The experiment with its results and report scores: of every plan, before and after retraining, on the report
    texts; of the best of each size and the controls on all else that the report asks for.

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
    chosen = best | {trial.spec.fingerprint for trial in trials if trial.spec.control}
    progress(f"scoring {len(trials)} trials")
    pending = {}
    for index, trial in enumerate(trials):
        if trial.result is None:
            continue
        on_progress = progress.about(f"evaluate {trial.spec.name}")
        units = (*texts, *choice_units(config, roles, dense)) if trial.spec.fingerprint in chosen else texts
        before = pool.submit(dense.view(trial.spec.plan.transforms), texts, on_progress)
        pending[index] = (before, pool.submit(trial.result.model, units, on_progress), units)
    for index, (before, after, units) in pending.items():
        before_scores, after_scores = _result(pool, before, texts, dtype), _result(pool, after, units, dtype)
        for missing in (*before_scores.missing, *after_scores.missing):
            LOGGER.error("%s of %s is missing: %s", missing.name, trials[index].spec.name, missing.cause)
        trials[index] = replace(trials[index], before=before_scores, after=after_scores)
        progress(f"scored {index + 1}/{len(trials)} trials")
    if config.evaluation.report.efficiency:
        for index, trial in enumerate(trials):  # one after the other: timings must not disturb one another
            if trial.spec.fingerprint in best and trial.result is not None:
                unit = EfficiencyUnit(settings=config.evaluation.efficiency, dense=dense)
                on_progress = progress.about(f"time {trial.spec.name}")
                found = _result(pool, pool.submit(trial.result.model, (unit,), on_progress), (unit,), dtype)
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
