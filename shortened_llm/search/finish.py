"""After the search: measure the report scores once, and gather everything into the Experiment record."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from shortened_llm.config import SearchConfig
from shortened_llm.data.sources import TextRoles
from shortened_llm.errors import last_line
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.evaluation.units import EfficiencyUnit, Unit
from shortened_llm.logs import LOGGER
from shortened_llm.models.load import size_of
from shortened_llm.records import (
    BlockScores,
    EvalScores,
    Experiment,
    MissingScore,
    ModelRef,
    ReportedTrial,
    TrialFailure,
    TrialSpec,
)
from shortened_llm.reporting.rows import best_of_each_size
from shortened_llm.search.prepare import choice_units, report_units, selection_units
from shortened_llm.search.progress import Progress
from shortened_llm.search.provenance import provenance
from shortened_llm.search.trial import TrialContext, read_result

VERSIONED = ("torch", "transformers", "tokenizers", "datasets", "lm_eval", "ray")


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
            raise ScoresMissingError(f"{missing.unit} of the dense model: {missing.cause}")
        return scores

    return wait


def gather(
    config: SearchConfig,
    context: TrialContext,
    dense_scores: DenseScores,
    roles: TextRoles,
    scores: Sequence[BlockScores],
    specs: Sequence[TrialSpec],
    failures: Mapping[str, TrialFailure],
    progress: Progress,
) -> Experiment:
    """Score every plan, before and after retraining, on the report texts; the best of each size and the controls on
    all else that the report asks for."""
    dense, pool = context.space.dense, context.pool
    texts: tuple[Unit, ...] = report_units(config, roles)
    trials = [
        ReportedTrial(
            spec=spec,
            result=read_result(context.store, spec),
            failure=failures[spec.fingerprint].cause if spec.fingerprint in failures else None,
            before=EvalScores(),
            after=EvalScores(),
        )
        for spec in specs
    ]
    best = {trial.spec.fingerprint for trial in best_of_each_size(trials).values()}
    chosen = best | {spec.fingerprint for spec in specs if spec.control}
    progress(f"scoring {len(specs)} trials")
    pending = {}
    for index, trial in enumerate(trials):
        if trial.result is None:
            continue
        on_progress = progress.about(f"evaluate {trial.spec.name}")
        units = (*texts, *choice_units(config, roles, dense)) if trial.spec.fingerprint in chosen else texts
        before = pool.submit(dense.view(trial.spec.plan.kept_blocks), texts, on_progress)
        pending[index] = (before, pool.submit(trial.result.model, units, on_progress))
    for index, submitted in pending.items():
        try:
            before_scores, after_scores = (pool.result(one) for one in submitted)
        except Exception as error:  # One model that cannot be scored must not cost the others their report.
            cause = MissingScore(unit="all report scores", cause=last_line(error))
            before_scores, after_scores = EvalScores(), EvalScores(missing=(cause,))
        for missing in (*before_scores.missing, *after_scores.missing):
            LOGGER.error("%s of %s is missing: %s", missing.unit, trials[index].spec.name, missing.cause)
        trials[index] = replace(trials[index], before=before_scores, after=after_scores)
        progress(f"scored {index + 1}/{len(specs)} trials")
    if config.evaluation.report.efficiency:
        for index, trial in enumerate(trials):  # one after the other: timings must not disturb one another
            if trial.spec.fingerprint in best and trial.result is not None:
                unit = EfficiencyUnit(
                    settings=config.evaluation.efficiency, dense=dense, kept_blocks=trial.spec.plan.kept_blocks
                )
                found = pool.evaluate(trial.result.model, (unit,), progress.about(f"time {trial.spec.name}"))
                after = replace(
                    trial.after, efficiency=found.efficiency, missing=(*trial.after.missing, *found.missing)
                )
                trials[index] = replace(trial, after=after)
    experiment = Experiment(
        name=config.experiment,
        model=config.model.path,
        num_blocks=dense.num_blocks,
        dense_parameters=size_of(dense).parameters(dense.kept_blocks),
        dense_url=dense.url,
        dense_selection=dense_scores.selection,
        dense_report=dense_scores.report,
        block_scores=tuple(scores),
        trials=tuple(trials),
        unseen_texts=tuple(d.source.label for d in roles.report if "train" not in d.shared_with),
        notes=_notes(config, roles),
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
        provenance=provenance(config),
    )
    progress(None)
    return experiment


def _notes(config: SearchConfig, roles: TextRoles) -> tuple[str, ...]:
    notes = []
    for documents in roles.report:
        label = documents.source.label
        if "train" in documents.shared_with:
            notes.append(f"{label}: other documents of this source were trained on; these were split off before.")
        else:
            notes.append(f"{label}: never trained on.")
        if "selection" in documents.shared_with:
            notes.append(f"{label}: one source serves selection and report, split by document.")
    if roles.report and all("train" in documents.shared_with for documents in roles.report):
        notes.append("Every report text comes from a source that was trained on: adaptation to it counts as quality.")
    if not roles.report:
        notes.append("No report texts were given: the scores shown also chose the models, which flatters them.")
    notes.append(
        f"Retraining: AdamW, compute in {config.model.dtype} with float32 master weights of what is trained, sequences "
        f"of {config.retraining.sequence_length} tokens, {config.retraining.global_batch_size} a step."
    )
    notes.append(f"Selection and report scores are computed in {config.model.dtype}.")
    return tuple(notes)
