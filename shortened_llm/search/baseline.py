"""The dense model's scores, which everything is compared with."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from shortened_llm.config import ExperimentConfig
from shortened_llm.config.metric import objective
from shortened_llm.data.sources import TextRoles
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.records import EvalScores, ModelRef
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.search.units import choice_units, report_units, selection_units


class ScoresMissingError(RuntimeError):
    """What cannot be measured of the dense model cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseScores:
    """Scores of the model that everything is compared with."""

    selection: EvalScores
    report: EvalScores


def submit_dense(
    config: ExperimentConfig, dense: ModelRef, roles: TextRoles, pool: EvaluationPool, progress: Progress
) -> Callable[[], DenseScores]:
    """Begin to score the dense model on everything; returns what waits for the scores.

    Done first, so that a text or task that cannot be scored ends the search before it trains.
    """
    scoring = progress.about("evaluate the dense model")
    selection = pool.submit(dense, selection_units(config, roles), scoring)
    report = pool.submit(dense, (*report_units(config, roles), *choice_units(config, roles, dense)), scoring)

    def wait() -> DenseScores:
        scores = DenseScores(selection=pool.result(selection), report=pool.result(report))
        for missing in (*scores.selection.missing, *scores.report.missing):
            if missing.is_bad_input:
                raise BadInputError(missing.cause)
            raise ScoresMissingError(f"{missing.name} of the dense model: {missing.cause}")
        chosen_by = objective(config.search)
        if not math.isfinite(chosen_by.loss(scores.selection)):
            raise BadInputError(f"search.metric: the dense model has no finite {chosen_by.title}; give another metric")
        return scores

    return wait
