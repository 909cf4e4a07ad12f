"""Several experiments on one dense model as one: what both have appears once, what differs stays apart."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from shortened_llm.errors import BadInputError
from shortened_llm.records import (
    AgreementScore,
    BlockScores,
    EvalScores,
    Experiment,
    PerplexityScore,
    PrunePlan,
    ReportedTrial,
    TrialResult,
)

SAME_SCORE = 1e-3
"""Relative difference up to which two scores of the dense model come from one text: hardware moves the last digits."""
ScoreName = tuple[str, str, str]
"""Kind, source and protocol of a score."""
Names = Mapping[tuple[str, str, str, str], tuple[str, str]]
"""Kind, source, protocol and documents of a score -> its source and documents in the merged experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a score was measured on, as far as it tells."""

    documents: str = ""
    num_items: int
    """Predictions or items."""
    dense: float | None = None
    """The dense model's own score, where it has one."""

    def is_same(self, other: "Measured") -> bool:
        """By the documents, where both are recorded; else by their number and the dense model's score."""
        if self.documents and other.documents:
            return self.documents == other.documents
        if self.dense is not None and other.dense is not None and not math.isclose(
            self.dense, other.dense, rel_tol=SAME_SCORE
        ):  # fmt: skip
            return False
        return self.num_items == other.num_items


def merge_experiments(experiments: Sequence[Experiment]) -> Experiment:
    """One experiment with the trials of all, each saying which experiments have it.

    Trials of one fingerprint appear once. Scores share a column only if source, protocol and documents agree (where
    documents are not recorded, the dense model's own score); where two texts have one name, the later experiment's
    carries its experiment's name, and likewise a criterion with other scores.

    Raises:
        BadInputError: the dense models differ in number of blocks, parameters, or fingerprint of their files; where a
            fingerprint is not recorded, the model's name stands for it.
    """
    first, *others = experiments
    for other in others:
        _check_same_dense(first, other)
    merged = _named(first, {}, {})
    for other in others:
        merged = _add(merged, other)
    return replace(merged, name=" + ".join(experiment.name for experiment in experiments))


def _check_same_dense(first: Experiment, other: Experiment) -> None:
    known = first.dense_fingerprint and other.dense_fingerprint
    compared = {
        "blocks": (first.num_blocks, other.num_blocks),
        "parameters": (first.dense_parameters, other.dense_parameters),
        "files": (first.dense_fingerprint, other.dense_fingerprint) if known else (first.model, other.model),
    }
    differing = [f"{name} {one} and {two}" for name, (one, two) in compared.items() if one != two]
    if differing:
        raise BadInputError(
            f"EXPERIMENT: {first.name!r} and {other.name!r} have different dense models, {first.model!r} and "
            f"{other.model!r} ({'; '.join(differing)}); give experiments on one dense model, or report them one by one"
        )


def _add(merged: Experiment, other: Experiment) -> Experiment:
    selection = _names(_measured(merged.dense_selection), _measured(other.dense_selection), other.name)
    report = _names(_measured_for_report(merged), _measured_for_report(other), other.name)
    known = {scores.ranking: scores.fingerprint for scores in merged.block_scores}
    criteria = {
        scores.ranking: f"{scores.criterion} ({other.name})"
        for scores in other.block_scores
        if known.get(scores.ranking, scores.fingerprint) != scores.fingerprint
    }
    named = _named(other, {**selection, **report}, criteria)
    trials = {trial.spec.fingerprint: trial for trial in merged.trials}
    for trial in named.trials:
        own = trials.get(trial.spec.fingerprint)
        trials[trial.spec.fingerprint] = (
            trial if own is None else _once(own, trial, (merged.dense_report, named.dense_report))
        )
    texts = (merged.unseen_texts, named.unseen_texts)
    return replace(
        merged,
        trials=tuple(trials.values()),
        block_scores=_distinct_scores(merged.block_scores, named.block_scores),
        dense_selection=_union(merged.dense_selection, named.dense_selection),
        dense_report=_union(merged.dense_report, named.dense_report),
        unseen_texts=None if None in texts else tuple(dict.fromkeys(text for known in texts for text in known or ())),
        notes=tuple(dict.fromkeys((*merged.notes, *named.notes))),
        versions={
            name: _both(merged.versions.get(name), named.versions.get(name), other.name)
            for name in {**merged.versions, **named.versions}
        },
    )


def _both(first: str | None, second: str | None, name: str) -> str:
    if first is None or second is None or first == second:
        return first or second or ""
    return f"{first}; {second} in {name}"


def _names(first: Mapping[ScoreName, list[Measured]], second: Mapping[ScoreName, list[Measured]], name: str) -> Names:
    """What the merged experiment calls otherwise of the second's scores: a new name where they only share a name with
    the first's, and the documents as the first records them where they are the same."""
    names = {}
    for (kind, source, protocol), found in second.items():
        known = first.get((kind, source, protocol), [])
        for measured in found:
            same = next((one for one in known if one.is_same(measured)), None)
            if known and same is None:
                names[kind, source, protocol, measured.documents] = (f"{source} ({name})", measured.documents)
            elif same is not None and same.documents != measured.documents:
                names[kind, source, protocol, measured.documents] = (source, same.documents)
    return names


def _measured(dense: EvalScores) -> dict[ScoreName, list[Measured]]:
    """What the dense model was measured on, by name: several where an experiment itself gives texts one name."""
    found: dict[ScoreName, list[Measured]] = {}
    for text in dense.perplexity:
        measured = Measured(documents=text.documents, num_items=text.num_predictions, dense=text.mean_nll)
        found.setdefault(("text", text.source, text.protocol), []).append(measured)
    for task in dense.tasks:
        measured = Measured(num_items=task.num_items, dense=task.value)
        found.setdefault(("task", task.task, task.protocol), []).append(measured)
    return found


def _measured_for_report(experiment: Experiment) -> dict[ScoreName, list[Measured]]:
    """The same of the report, with the texts of agreements, of which the dense model's score tells nothing."""
    found = _measured(experiment.dense_report)
    for scores in (experiment.dense_report, *(trial.after for trial in experiment.trials)):
        for agreement in scores.agreement:
            measured = Measured(documents=agreement.documents, num_items=agreement.num_predictions)
            known = found.setdefault(("agreement", agreement.source, agreement.protocol), [])
            if measured not in known:
                known.append(measured)
    return found


def _named(experiment: Experiment, names: Names, criteria: Mapping[str, str]) -> Experiment:
    """With the new names everywhere, and every trial saying which experiment has it."""
    return replace(
        experiment,
        dense_selection=_renamed(experiment.dense_selection, names),
        dense_report=_renamed(experiment.dense_report, names),
        block_scores=tuple(
            replace(scores, criterion=criteria.get(scores.ranking, scores.criterion))
            for scores in experiment.block_scores
        ),
        trials=tuple(_named_trial(trial, experiment.name, names, criteria) for trial in experiment.trials),
        unseen_texts=None
        if experiment.unseen_texts is None
        else tuple(_unseen_name(text, names) for text in experiment.unseen_texts),
        notes=tuple(f"{experiment.name}: {note}" for note in experiment.notes),
    )


def _unseen_name(text: str, names: Names) -> str:
    found = (new for (kind, source, _, _), (new, _) in names.items() if kind == "text" and source == text != new)
    return next(found, text)


def _named_trial(trial: ReportedTrial, experiment: str, names: Names, criteria: Mapping[str, str]) -> ReportedTrial:
    result = trial.result
    return replace(
        trial,
        experiments=trial.experiments or (experiment,),
        spec=replace(trial.spec, plan=_named_plan(trial.spec.plan, criteria)),
        result=_named_result(result, names) if result else None,
        before=_renamed(trial.before, names),
        after=_renamed(trial.after, names),
    )


def _named_result(result: TrialResult, names: Names) -> TrialResult:
    return replace(result, before=_renamed(result.before, names), after=_renamed(result.after, names))


def _named_plan(plan: PrunePlan, criteria: Mapping[str, str]) -> PrunePlan:
    labels = tuple(replace(label, criterion=criteria.get(label.ranking, label.criterion)) for label in plan.labels)
    return replace(plan, labels=labels)


def _renamed(scores: EvalScores, names: Names) -> EvalScores:
    return replace(
        scores,
        perplexity=tuple(_renamed_text(x, names) for x in scores.perplexity),
        tasks=tuple(
            replace(x, task=names.get(("task", x.task, x.protocol, ""), (x.task, ""))[0]) for x in scores.tasks
        ),
        agreement=tuple(_renamed_text(x, names) for x in scores.agreement),
    )


OfText = TypeVar("OfText", PerplexityScore, AgreementScore)


def _renamed_text(score: OfText, names: Names) -> OfText:
    kinds = ("agreement", "text") if isinstance(score, AgreementScore) else ("text",)
    found = (names.get((kind, score.source, score.protocol, score.documents)) for kind in kinds)
    source, documents = next((name for name in found if name), (score.source, score.documents))
    return replace(score, source=source, documents=documents)


def _once(first: ReportedTrial, second: ReportedTrial, dense: tuple[EvalScores, EvalScores]) -> ReportedTrial:
    """One trial that two experiments have: whoever has a result, and every report score of both.

    Args:
        dense: report scores of the dense model in each.
    """
    return replace(
        first,
        spec=replace(
            first.spec,
            plan=replace(
                first.spec.plan, labels=tuple(dict.fromkeys((*first.spec.plan.labels, *second.spec.plan.labels)))
            ),
        ),
        result=min(filter(None, (first.result, second.result)), key=_num_missing, default=None),
        failure=first.failure or second.failure,
        running=first.running or second.running,
        stopped=first.stopped or second.stopped,
        before=_union(first.before, second.before, dense),
        after=_union(first.after, second.after, dense),
        experiments=(*first.experiments, *second.experiments),
    )


def _num_missing(result: TrialResult) -> int:
    return len(result.before.missing) + len(result.after.missing)


def _union(first: EvalScores, second: EvalScores, dense: tuple[EvalScores, EvalScores] | None = None) -> EvalScores:
    """Every score once, the first's where both have it. What one lacks and the other has is not missing.

    Args:
        dense: scores of the dense model in each experiment, which say what it asked for; of the dense model, its own.
    """
    perplexity = {(x.source, x.protocol, x.documents): x for x in (*second.perplexity, *first.perplexity)}
    tasks = {(x.task, x.metric, x.protocol): x for x in (*second.tasks, *first.tasks)}
    agreement = {(x.source, x.protocol, x.documents): x for x in (*second.agreement, *first.agreement)}
    metrics = {(x.name, x.protocol): x for x in (*second.metrics, *first.metrics)}

    def in_order(found: dict, firsts: tuple) -> tuple:
        return (*firsts, *(score for score in found.values() if score not in firsts))

    union = EvalScores(
        perplexity=in_order(perplexity, first.perplexity),
        tasks=in_order(tasks, first.tasks),
        agreement=in_order(agreement, first.agreement),
        metrics=in_order(metrics, first.metrics),
        efficiency=first.efficiency or second.efficiency,
    )
    asked = zip((first, second), dense or (first, second), strict=True)
    missing = [one for scores, by in asked for one in scores.missing if not _is_answered(one.unit, by, union)]
    return replace(union, missing=tuple(dict.fromkeys(missing)))


def _is_answered(unit: str, dense: EvalScores, scores: EvalScores) -> bool:
    """Whether `scores` has what the dense model was measured on as `unit`."""
    if unit == "speed and memory":
        return scores.efficiency is not None
    wanted = {key for name, key in _units(dense) if unit == name or unit.startswith(f"{name}, ")}
    return bool(wanted) and wanted <= {key for _, key in _units(scores)}


def _units(scores: EvalScores) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of each score, its unit's name (`evaluation/units.py`), of a task without its shots, and what sets it apart."""
    for text in scores.perplexity:
        yield f"perplexity on {text.source} {_settings(text)}", ("text", text.source, text.protocol, text.documents)
    for one in scores.agreement:
        yield f"agreement on {one.source} {_settings(one)}", ("agreement", one.source, one.protocol, one.documents)
    for task in scores.tasks:
        yield f"task {task.task}", ("task", task.task, task.metric, task.protocol)
    for own in scores.metrics:
        yield f"metric {own.name}", ("metric", own.name, own.protocol)


def _settings(text: PerplexityScore | AgreementScore) -> str:
    return text.protocol.rpartition(", ")[0]  # without the dtype


def _distinct_scores(first: tuple[BlockScores, ...], second: tuple[BlockScores, ...]) -> tuple[BlockScores, ...]:
    known = {scores.ranking for scores in first}
    return (*first, *(scores for scores in second if scores.ranking not in known))
