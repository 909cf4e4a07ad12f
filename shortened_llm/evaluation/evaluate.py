"""Score one model in this process; needs no Ray."""

from collections.abc import Sequence

from shortened_llm.errors import BadInputError, last_line
from shortened_llm.evaluation.measure import measure_unit, read_score, store_score
from shortened_llm.evaluation.subject import LoadedModels, Subject
from shortened_llm.evaluation.units import Score, Unit, unit_fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.records import (
    AgreementScore,
    EfficiencyScore,
    EvalScores,
    MetricScore,
    MissingScore,
    ModelRef,
    PerplexityScore,
    TaskScore,
)
from shortened_llm.storage.store import Store


def evaluate(
    ref: ModelRef,
    units: Sequence[Unit],
    store: Store,
    loaded: LoadedModels,
    *,
    batch_size: int,
) -> EvalScores:
    """All scores of one model. One that fails is missing, with its cause, and costs no other.

    Raises:
        BadInputError: as `measure_unit`.
    """
    subject = Subject(ref=ref, loaded=loaded, store=store, batch_size=batch_size)
    scores: list[Score | MissingScore] = []
    for unit in units:
        score = read_score(ref, unit, store, loaded.dtype)
        if score is None:
            LOGGER.info("%s", unit.name)
            try:
                score = store_score(ref, unit, measure_unit(unit, subject), store, loaded.dtype)
            except BadInputError:
                raise
            except Exception as error:  # whatever a task, a measure or a model's numbers do
                lost = unit_fingerprint(unit, loaded.dtype)
                scores.append(MissingScore(unit=lost, name=unit.name, cause=last_line(error)))
                continue
        scores.append(score)
    return gather_scores(scores)


def gather_scores(scores: Sequence[Score | MissingScore]) -> EvalScores:
    """The scores of one model by their kind, each kind in its order."""
    return EvalScores(
        perplexity=tuple(score for score in scores if isinstance(score, PerplexityScore)),
        tasks=tuple(score for score in scores if isinstance(score, TaskScore)),
        agreement=tuple(score for score in scores if isinstance(score, AgreementScore)),
        metrics=tuple(score for score in scores if isinstance(score, MetricScore)),
        efficiency=next((score for score in scores if isinstance(score, EfficiencyScore)), None),
        missing=tuple(score for score in scores if isinstance(score, MissingScore)),
    )
