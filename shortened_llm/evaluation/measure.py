"""Measure one unit of one model; what was measured before is read back."""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel

from shortened_llm.evaluation.agreement import measure_agreement
from shortened_llm.evaluation.chunks import Take, Taker
from shortened_llm.evaluation.efficiency import measure_efficiency
from shortened_llm.evaluation.own_metric import measure_metric
from shortened_llm.evaluation.perplexity import TextPart, measure_text, perplexity_score, text_segments
from shortened_llm.evaluation.task_requests import RequestsDifferError, TaskPart
from shortened_llm.evaluation.tasks import join_task, measure_task
from shortened_llm.evaluation.units import (
    AgreementUnit,
    EfficiencyUnit,
    MetricUnit,
    Score,
    TaskUnit,
    TextUnit,
    Unit,
    unit_fingerprint,
)
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model
from shortened_llm.models.view import empty_view
from shortened_llm.records import AgreementScore, ModelRef, TaskScore
from shortened_llm.storage.layout import EVALUATIONS
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join

Part = TextPart | TaskPart | Score
"""Of a text, the losses of some chunks; of a task that was shared, some answers; else the score itself."""


class LoadedModels:
    """The models that a process holds: those of its last unit."""

    def __init__(self, dtype: str, device: str) -> None:
        self.dtype, self.device = dtype, device
        self._models: dict[str, PreTrainedModel] = {}

    def hold(self, *refs: ModelRef) -> tuple[PreTrainedModel, ...]:
        """These models and no others; a model that is held already is not loaded again."""
        wanted = {fingerprint(ref.identity): ref for ref in refs}
        if unwanted := self._models.keys() - wanted.keys():
            for key in unwanted:
                del self._models[key]
            clear_device_cache(garbage_collection=True)
        for key, ref in wanted.items():
            if key not in self._models:
                self._models[key] = load_model(ref, self.dtype, device=self.device)
        return tuple(self._models[fingerprint(ref.identity)] for ref in refs)


def score_identity(ref: ModelRef, unit: Unit, dtype: str) -> dict[str, object]:
    """What a score depends on."""
    return {
        "model": ref.identity,
        "unit": unit.identity,
        "dtype": dtype,
        "tokenizers": importlib.metadata.version("tokenizers"),
    }


def read_score(ref: ModelRef, unit: Unit, store: Store, dtype: str) -> Score | None:
    """The score, where it is stored; speed and memory are of a machine and a moment, and measured each time."""
    if isinstance(unit, EfficiencyUnit):
        return None
    score: Score | None = store.read(EVALUATIONS, fingerprint(score_identity(ref, unit, dtype)), unit.score_type)
    return score


def measure_part(
    ref: ModelRef,
    unit: Unit,
    loaded: LoadedModels,
    store: Store,
    *,
    batch_size: int,
    take: Take | None = None,
    sign_of_life: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None],
) -> Part:
    """Measure a unit, or some chunks of it. A batch that memory does not hold is halved, which is noted.

    Args:
        take: takes the chunks to measure; all of them unless given.
        sign_of_life: called now and then where no chunks are taken.

    Raises:
        BadInputError: the unit cannot be measured with this model's tokenizer, or its data cannot be reached.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    tokenizer = load_tokenizer(model_directory(ref))
    taker = Taker(take, sign_of_life)
    match unit:
        case EfficiencyUnit():
            loaded.hold()  # it loads both models itself
            return measure_efficiency(
                unit.dense, ref, unit.settings,
                dtype=loaded.dtype, device=loaded.device, on_progress=on_note, on_run=sign_of_life,
            )  # fmt: skip
        case MetricUnit():
            (model,) = loaded.hold(ref)
            return measure_metric(model, tokenizer, unit.path)

    def measure(size: int) -> Part:
        if size < batch_size:
            on_note(f"{unit.name}: a batch of {batch_size} does not fit in memory; trying {size}")
        found = measure_with(size)
        if size == batch_size:
            return found
        return replace(
            found,
            notes=(
                *found.notes,
                f"batch of {batch_size} did not fit in memory: halved to {size}",
            ),
        )

    def measure_with(size: int) -> TextPart | TaskPart | AgreementScore | TaskScore:
        match unit:
            case TextUnit():
                segments = text_segments(unit.documents, unit.source, tokenizer)
                (model,) = loaded.hold(ref)
                return measure_text(model, segments, batch_size=size, cut_size=batch_size, taker=taker)
            case AgreementUnit():
                segments = text_segments(unit.documents, unit.source, tokenizer)
                model, dense = loaded.hold(ref, unit.dense)
                return measure_agreement(
                    model, dense, segments, unit.documents, unit.source, batch_size=size, on_batch=sign_of_life
                )
            case TaskUnit():
                (model,) = loaded.hold(ref)
                with _task_files(ref, unit, store, loaded.dtype) as (output, finished):
                    found = measure_task(
                        model, tokenizer, unit.config, directory=unit.directory, limit=unit.limit, batch_size=size,
                        cut_size=batch_size, taker=taker, output=output,
                    )  # fmt: skip
                    return found if isinstance(found, TaskPart) else finished(found)

    measured: Part = find_executable_batch_size(
        measure, starting_batch_size=batch_size, reduce_batch_size_fn=_halving(batch_size)
    )()
    return measured


def _halving(batch_size: int) -> Callable[[], int]:
    """accelerate asks for the next size; 0 makes it give up."""
    size = batch_size

    def halve() -> int:
        nonlocal size
        size //= 2
        return size

    return halve


@contextmanager
def _task_files(
    ref: ModelRef, unit: TaskUnit, store: Store, dtype: str
) -> Iterator[tuple[Path, Callable[[TaskScore], TaskScore]]]:
    """A directory for lm-eval's files, and what stores them and gives the score their URL."""
    url = store.attempt_url(EVALUATIONS, fingerprint(score_identity(ref, unit, dtype)))

    def finished(score: TaskScore) -> TaskScore:
        upload_directory(output, url)
        return replace(score, results_url=join(url, "results.json"))

    with temporary_directory() as temporary:
        output = Path(temporary)
        yield output, finished


def join_task_parts(
    ref: ModelRef, unit: TaskUnit, parts: Sequence[TaskPart], store: Store, dtype: str
) -> TaskScore | None:
    """The score of a task that several processes measured. It sets the task up once more, so it is work for an
    evaluator.

    Returns:
        None where the task asks other things each time that it is set up: then one process has to measure it all.

    Raises:
        BadInputError, NonFiniteLossError: as `measure_part`.
    """
    directory = model_directory(ref)
    # lm-eval wants a model to describe in its results, and asks it nothing.
    model = empty_view(ref, dtype)
    with _task_files(ref, unit, store, dtype) as (output, finished):
        try:
            score = join_task(
                model, load_tokenizer(directory), unit.config, parts, directory=unit.directory, limit=unit.limit,
                output=output,
            )  # fmt: skip
        except RequestsDifferError:
            return None
        return finished(score)


def finish_score(ref: ModelRef, unit: Unit, parts: Sequence[Part], store: Store, dtype: str) -> Score:
    """The score of all parts with the fingerprint of its unit, and the dtype in its protocol; stored. The parts of a
    task are joined before, by `join_task_parts`."""
    if isinstance(unit, TextUnit):
        texts = [part for part in parts if isinstance(part, TextPart)]
        score: Score = perplexity_score(texts, unit.documents, unit.source)
    else:
        (score,) = parts  # type: ignore[assignment]
    if not isinstance(unit, EfficiencyUnit):  # whose protocol begins with it
        score = replace(score, protocol=f"{score.protocol}, {dtype}")
    score = replace(score, unit=unit_fingerprint(unit, dtype))
    identity = score_identity(ref, unit, dtype)
    store.write(EVALUATIONS, fingerprint(identity), score, identity=identity, parents=(ref.fingerprint,))
    return score
