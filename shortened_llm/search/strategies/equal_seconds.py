"""Trials whose budget is the time that continued pretraining took, instead of its tokens."""

import statistics
from collections import defaultdict
from dataclasses import replace

from shortened_llm.records import Transform, TrialResult, TrialSpec
from shortened_llm.search.space import SearchSpace, distinct
from shortened_llm.search.strategies.strategy import Candidates, Outcomes

REFERENCE = "cpt"


def propose_equal_seconds(space: SearchSpace, candidates: Candidates, outcomes: Outcomes) -> tuple[TrialSpec, ...]:
    """For each trial on the corpus, the same with as many tokens as its method would have trained on in the time of
    continued pretraining, of the same plan and budget.

    Speeds are means over seeds and rates of finished trials, so that the budgets follow from what is stored. A method
    as fast as the reference gets the trial that it had.
    """
    seconds: dict[tuple[tuple[Transform, ...], int, str], list[float]] = defaultdict(list)
    compared = [
        spec
        for spec in outcomes.specs
        if spec.control is None and spec.train_on == "corpus" and spec.fingerprint in outcomes.results
    ]
    for spec in compared:
        seconds[_place(spec, spec.method)].append(_seconds(outcomes.results[spec.fingerprint]))
    found = []
    for spec in compared:
        reference, own = seconds[_place(spec, REFERENCE)], seconds[_place(spec, spec.method)]
        if spec.method != REFERENCE and reference:
            factor = (sum(reference) / len(reference)) / (sum(own) / len(own))
            found.append(replace(space.scaled(spec, factor), equal_seconds=True))
    return distinct(found)


def _seconds(result: TrialResult) -> float:
    """Training time at each run's median speed: without first steps, checkpoints and validation."""
    return sum(
        run.tokens / statistics.median(point.tokens_per_second for point in run.history) if run.history else run.seconds
        for run in result.runs
    )


def _place(spec: TrialSpec, method: str) -> tuple[tuple[Transform, ...], int, str]:
    """What trials must share to be compared."""
    return spec.plan.transforms, sum(recipe.num_steps for recipe in spec.recipes), method
