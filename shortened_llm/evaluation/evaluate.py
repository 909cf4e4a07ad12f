"""Score one model in this process, without Ray; what was measured before is read back."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from shortened_llm.errors import BadInputError, last_line
from shortened_llm.evaluation.footprint import unless_out_of_memory
from shortened_llm.evaluation.subject import LoadedModels, Subject
from shortened_llm.evaluation.units import (
    EfficiencyUnit,
    MetricUnit,
    TextPart,
    TextUnit,
    Unit,
    WholeUnit,
    score_identity,
    unit_fingerprint,
)
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.records import (
    EvalScores,
    MissingScore,
    ModelRef,
    Score,
)
from shortened_llm.storage.layout import EVALUATIONS
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
        BadInputError: as `measure`.
    """
    subject = Subject(ref=ref, loaded=loaded, store=store, batch_size=batch_size)
    scores: list[Score | MissingScore] = []
    for unit in units:
        score = read_score(ref, unit, store, loaded.dtype)
        if score is None:
            LOGGER.info("%s", unit.name)
            try:
                if isinstance(unit, TextUnit):
                    score = unit.join([measure(part, subject) for part in unit.parts(subject)])
                else:
                    score = measure(unit, subject)
                score = store_score(ref, unit, score, store, loaded.dtype)
            except BadInputError:
                raise
            except Exception as error:  # whatever a task, a measure or a model's numbers do
                lost = unit_fingerprint(unit, loaded.dtype)
                scores.append(MissingScore(unit=lost, name=unit.name, cause=last_line(error)))
                continue
        scores.append(score)
    return EvalScores.of(scores)


def read_score(ref: ModelRef, unit: Unit, store: Store, dtype: str) -> Score | None:
    """The score, where it is stored; speed and memory are of a machine and a moment, and measured each time."""
    if isinstance(unit, EfficiencyUnit):
        return None
    score: Score | None = store.read(EVALUATIONS, fingerprint(score_identity(ref, unit, dtype)), unit.score_type)
    return score


def measure(work: TextPart | WholeUnit, subject: Subject) -> Any:
    """Measure a unit, or a part of one. A batch that memory does not hold is halved, which is noted.

    Returns:
        The unit's score; `TextLosses` of a part.

    Raises:
        BadInputError: the unit cannot be measured with this model's tokenizer, or its data cannot be reached.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    if isinstance(work, (MetricUnit, EfficiencyUnit)):  # which know no batch size
        return work.measure(subject)
    wanted, fitting = subject.batch_size, subject.loaded.fitting_sizes
    key = fingerprint(subject.ref.identity), work.text.name if isinstance(work, TextPart) else work.name
    size = fitting.get(key, wanted)

    def measured(size: int) -> Any:
        return unless_out_of_memory(partial(work.measure, replace(subject, batch_size=size)))

    while (found := measured(size)) is None:
        size //= 2
        if not size:
            raise RuntimeError(f"a batch of one does not fit in memory, nor did one of {wanted}")
        fitting[key] = size
        LOGGER.warning("%s: a batch of %d does not fit in memory; trying %d", work.name, wanted, size)
    if size == wanted:
        return found
    return replace(found, notes=(*found.notes, f"batch of {wanted} did not fit in memory: halved to {size}"))


def store_score(ref: ModelRef, unit: Unit, score: Score, store: Store, dtype: str) -> Score:
    """The score as it is stored: with the fingerprint of its unit, and the dtype in its protocol."""
    if not isinstance(unit, EfficiencyUnit):  # whose protocol begins with it
        score = replace(score, protocol=f"{score.protocol}, {dtype}")
    score = replace(score, unit=unit_fingerprint(unit, dtype))
    identity = score_identity(ref, unit, dtype)
    store.write(EVALUATIONS, fingerprint(identity), score, identity=identity, parents=ref.parents)
    return score
