"""Several experiments on one dense model as one: what both have appears once, what differs stays apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shortened_llm.errors import BadInputError
from shortened_llm.records import (
    EvalScores,
    Experiment,
    Objective,
    PrunePlan,
    ReportedTrial,
    UnitScores,
    WidthScores,
)


def merge_experiments(experiments: Sequence[Experiment]) -> Experiment:
    """One experiment with the trials of all, each saying which experiments have it.

    Trials of one fingerprint appear once for each metric that they were chosen by, and scores of one unit once. A
    criterion with other scores carries its experiment's name from the second experiment on.

    Raises:
        BadInputError: the dense models differ in number of blocks, parameters, or fingerprint of their files.
    """
    first, *others = experiments
    for other in others:
        _check_same_dense(first, other)
    merged = _named(first, {})
    for other in others:
        merged = _add(merged, other)
    return replace(merged, name=" + ".join(experiment.name for experiment in experiments))


def _check_same_dense(first: Experiment, other: Experiment) -> None:
    compared = {
        "blocks": (first.dense_size.blocks, other.dense_size.blocks),
        "parameters": (first.dense_size.parameters, other.dense_size.parameters),
        "files": (first.dense_fingerprint, other.dense_fingerprint),
    }
    differing = [f"{name} {one} and {two}" for name, (one, two) in compared.items() if one != two]
    if differing:
        raise BadInputError(
            f"EXPERIMENT: {first.name!r} and {other.name!r} have different dense models, {first.model!r} and "
            f"{other.model!r} ({'; '.join(differing)}); give experiments on one dense model, or report them one by one"
        )


def _add(merged: Experiment, other: Experiment) -> Experiment:
    known = {scores.ranking: scores.fingerprint for scores in _rankings(merged)}
    criteria = {
        scores.ranking: f"{scores.criterion} ({other.name})"
        for scores in _rankings(other)
        if known.get(scores.ranking, scores.fingerprint) != scores.fingerprint
    }
    named = _named(other, criteria)
    trials = {_row(trial): trial for trial in merged.trials}
    for trial in named.trials:
        own = trials.get(_row(trial))
        trials[_row(trial)] = trial if own is None else _once(own, trial)
    return replace(
        merged,
        trials=tuple(trials.values()),
        unit_scores=(*merged.unit_scores, *(one for one in named.unit_scores if one.ranking not in known)),
        width_scores=(*merged.width_scores, *(one for one in named.width_scores if one.ranking not in known)),
        dense_selection=_union(merged.dense_selection, named.dense_selection),
        dense_report=_union(merged.dense_report, named.dense_report),
        unseen_units=tuple(dict.fromkeys((*merged.unseen_units, *named.unseen_units))),
        notes=tuple(dict.fromkeys((*merged.notes, *named.notes))),
        constraints=merged.constraints if merged.constraints == named.constraints else None,
        versions={
            name: _both(merged.versions.get(name), named.versions.get(name), other.name)
            for name in {**merged.versions, **named.versions}
        },
    )


def _rankings(experiment: Experiment) -> tuple[UnitScores | WidthScores, ...]:
    found: tuple[UnitScores | WidthScores, ...] = experiment.unit_scores
    return (*found, *experiment.width_scores)


def _row(trial: ReportedTrial) -> tuple[object, Objective]:
    """What sets a row apart: a model may be compared by two metrics."""
    return trial.spec.row, trial.spec.objective


def _both(first: str | None, second: str | None, name: str) -> str:
    if first is None or second is None or first == second:
        return first or second or ""
    return f"{first}; {second} in {name}"


def _named(experiment: Experiment, criteria: Mapping[str, str]) -> Experiment:
    """With the new names of criteria everywhere, and every trial saying which experiment has it."""
    return replace(
        experiment,
        unit_scores=tuple(
            replace(scores, criterion=criteria.get(scores.ranking, scores.criterion))
            for scores in experiment.unit_scores
        ),
        width_scores=tuple(
            replace(scores, criterion=criteria.get(scores.ranking, scores.criterion))
            for scores in experiment.width_scores
        ),
        trials=tuple(
            replace(
                trial,
                experiments=trial.experiments or (experiment.name,),
                spec=replace(trial.spec, plan=_named_plan(trial.spec.plan, criteria)),
            )
            for trial in experiment.trials
        ),
        notes=tuple(f"{experiment.name}: {note}" for note in experiment.notes),
    )


def _named_plan(plan: PrunePlan, criteria: Mapping[str, str]) -> PrunePlan:
    labels = tuple(replace(label, criterion=criteria.get(label.ranking, label.criterion)) for label in plan.labels)
    return replace(plan, labels=labels)


def _once(first: ReportedTrial, second: ReportedTrial) -> ReportedTrial:
    """One trial that two experiments have: whoever has a result, and every report score of both. It stays a candidate
    of the search with rungs, where one of them has some."""
    spec = first.spec if first.spec.candidate else second.spec
    labels = tuple(dict.fromkeys((*first.spec.plan.labels, *second.spec.plan.labels)))
    return replace(
        first,
        spec=replace(spec, plan=replace(first.spec.plan, labels=labels)),
        result=min(
            filter(None, (first.result, second.result)),
            key=lambda result: len(result.before.missing) + len(result.after.missing),
            default=None,
        ),
        failure=first.failure or second.failure,
        left_out=first.left_out or second.left_out,
        running=first.running or second.running,
        stopped=first.stopped or second.stopped,
        before=_union(first.before, second.before),
        after=_union(first.after, second.after),
        experiments=(*first.experiments, *second.experiments),
    )


def _union(first: EvalScores, second: EvalScores) -> EvalScores:
    """The scores of every unit once: the first's, where both have them. What either has is not missing."""
    found = first.found | second.found | first.found
    missing = (score for score in (*first.missing, *second.missing) if score.unit not in found)
    return EvalScores.of((*found.values(), *dict.fromkeys(missing)))
