"""Trials whose budget is the time that continued pretraining took, instead of its tokens."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from shortened_llm.records import Transform, TrialResult, TrialSpec
from shortened_llm.search.space import SearchSpace

REFERENCE = "cpt"


def equal_seconds_trials(
    space: SearchSpace, specs: Iterable[TrialSpec], results: Mapping[str, TrialResult]
) -> tuple[TrialSpec, ...]:
    """For each trial on the corpus, the same with as many tokens as its method would have trained on in the time of
    continued pretraining, of the same plan and budget.

    Speeds are means over seeds and rates of finished trials, so that the budgets follow from what is stored. A method
    as fast as the reference gets the trial that it had.
    """
    seconds: dict[tuple[tuple[Transform, ...], int, str], list[float]] = defaultdict(list)
    compared = [
        spec for spec in specs if spec.control is None and spec.train_on == "corpus" and spec.fingerprint in results
    ]
    for spec in compared:
        seconds[_place(spec, spec.method)].append(_seconds(results[spec.fingerprint]))
    found = []
    for spec in compared:
        reference, own = seconds[_place(spec, REFERENCE)], seconds[_place(spec, spec.method)]
        if spec.method != REFERENCE and reference:
            factor = (sum(reference) / len(reference)) / (sum(own) / len(own))
            found.append(replace(space.scaled(spec, factor), equal_seconds=True))
    return tuple(found)


def _seconds(result: TrialResult) -> float:
    """Training time at each run's median speed: without first steps, checkpoints and validation."""
    return sum(
        run.tokens / statistics.median(point.tokens_per_second for point in run.history) if run.history else run.seconds
        for run in result.runs
    )


def _place(spec: TrialSpec, method: str) -> tuple[tuple[Transform, ...], int, str]:
    """What trials must share to be compared."""
    return spec.plan.transforms, sum(recipe.num_steps for recipe in spec.recipes), method
