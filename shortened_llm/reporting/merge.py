"""Several experiments on one dense model as one: what both have appears once, what differs stays apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shortened_llm.errors import BadInputError
from shortened_llm.records import BlockScores, EvalScores, Experiment, PrunePlan, ReportedTrial, TrialResult

SAME_SCORE = 1e-3
"""Relative difference up to which two scores of the dense model come from one text: hardware moves the last digits."""
Names = Mapping[tuple[str, str, str], str]
"""Kind, source and protocol of a score -> the name of its source in the merged experiment."""


def merge_experiments(experiments: Sequence[Experiment]) -> Experiment:
    """One experiment with the trials of all, each saying which experiments have it.

    Trials of one fingerprint appear once. Scores share a column only if source, protocol and the dense model's own
    score agree; where two texts have one name, the later experiment's carries its experiment's name, and likewise a
    criterion with other scores.

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
    selection = _names(merged.dense_selection, other.dense_selection, other.name)
    report = _names(merged.dense_report, other.dense_report, other.name)
    known = {scores.criterion: scores.fingerprint for scores in merged.block_scores}
    criteria = {
        scores.criterion: f"{scores.criterion} ({other.name})"
        for scores in other.block_scores
        if known.get(scores.criterion, scores.fingerprint) != scores.fingerprint
    }
    named = _named(other, {**selection, **report}, criteria)
    trials = {trial.spec.fingerprint: trial for trial in merged.trials}
    for trial in named.trials:
        own = trials.get(trial.spec.fingerprint)
        trials[trial.spec.fingerprint] = trial if own is None else _once(own, trial)
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


def _names(first: EvalScores, second: EvalScores, name: str) -> Names:
    """New names of the second's scores that only share a name with the first's."""
    known = _values(first)
    return {
        key: f"{key[1]} ({name})"
        for key, (count, value) in _values(second).items()
        if key in known and (known[key][0] != count or abs(known[key][1] - value) > SAME_SCORE * abs(value))
    }


def _values(scores: EvalScores) -> dict[tuple[str, str, str], tuple[int, float]]:
    """Kind, source and protocol -> number of predictions or items, and the score."""
    return {
        **{("text", text.source, text.protocol): (text.num_predictions, text.mean_nll) for text in scores.perplexity},
        **{("task", task.task, task.protocol): (task.num_items, task.value) for task in scores.tasks},
    }


def _named(experiment: Experiment, names: Names, criteria: Mapping[str, str]) -> Experiment:
    """With the new names everywhere, and every trial saying which experiment has it."""
    return replace(
        experiment,
        dense_selection=_renamed(experiment.dense_selection, names),
        dense_report=_renamed(experiment.dense_report, names),
        block_scores=tuple(
            replace(scores, criterion=criteria.get(scores.criterion, scores.criterion))
            for scores in experiment.block_scores
        ),
        trials=tuple(_named_trial(trial, experiment.name, names, criteria) for trial in experiment.trials),
        unseen_texts=None
        if experiment.unseen_texts is None
        else tuple(_unseen_name(text, names) for text in experiment.unseen_texts),
        notes=tuple(f"{experiment.name}: {note}" for note in experiment.notes),
    )


def _unseen_name(text: str, names: Names) -> str:
    return next((new for (kind, source, _), new in names.items() if kind == "text" and source == text), text)


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
    labels = tuple(replace(label, criterion=criteria.get(label.criterion, label.criterion)) for label in plan.labels)
    return replace(plan, labels=labels)


def _renamed(scores: EvalScores, names: Names) -> EvalScores:
    def name(kind: str, source: str, protocol: str) -> str:
        return names.get((kind, source, protocol), source)

    return replace(
        scores,
        perplexity=tuple(replace(x, source=name("text", x.source, x.protocol)) for x in scores.perplexity),
        tasks=tuple(replace(x, task=name("task", x.task, x.protocol)) for x in scores.tasks),
        agreement=tuple(replace(x, source=name("text", x.source, x.protocol)) for x in scores.agreement),
    )


def _once(first: ReportedTrial, second: ReportedTrial) -> ReportedTrial:
    """One trial that two experiments have: whoever has a result, and every report score of both."""
    return replace(
        first,
        spec=replace(
            first.spec,
            plan=replace(
                first.spec.plan, labels=tuple(dict.fromkeys((*first.spec.plan.labels, *second.spec.plan.labels)))
            ),
        ),
        result=first.result or second.result,
        failure=first.failure or second.failure,
        running=first.running or second.running,
        before=_union(first.before, second.before),
        after=_union(first.after, second.after),
        experiments=(*first.experiments, *second.experiments),
    )


def _union(first: EvalScores, second: EvalScores) -> EvalScores:
    """Every score once, the first's where both have it."""
    perplexity = {(x.source, x.protocol): x for x in (*second.perplexity, *first.perplexity)}
    tasks = {(x.task, x.metric, x.protocol): x for x in (*second.tasks, *first.tasks)}
    agreement = {(x.source, x.protocol): x for x in (*second.agreement, *first.agreement)}
    metrics = {(x.name, x.protocol): x for x in (*second.metrics, *first.metrics)}

    def in_order(found: dict, firsts: tuple) -> tuple:
        return (*firsts, *(score for score in found.values() if score not in firsts))

    return EvalScores(
        perplexity=in_order(perplexity, first.perplexity),
        tasks=in_order(tasks, first.tasks),
        agreement=in_order(agreement, first.agreement),
        metrics=in_order(metrics, first.metrics),
        efficiency=first.efficiency or second.efficiency,
        missing=tuple(dict.fromkeys((*first.missing, *second.missing))),
    )


def _distinct_scores(first: tuple[BlockScores, ...], second: tuple[BlockScores, ...]) -> tuple[BlockScores, ...]:
    known = {scores.criterion for scores in first}
    return (*first, *(scores for scores in second if scores.criterion not in known))
