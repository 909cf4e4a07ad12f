"""The items of a task, one by one, from the samples that lm-eval logs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shortened_llm.errors import NonFiniteLossError


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """What `records.TaskScore` holds of each item; empty where there is nothing."""

    values: tuple[float, ...]
    answers: tuple[int, ...]
    bits_per_byte: tuple[float, ...]


def task_items(task: Any, samples: Sequence[dict[str, Any]], metric: str, filter_name: str) -> Items:
    """The items of one of lm-eval's tasks, in the order of its data, from the samples of `simple_evaluate`.

    Raises:
        NonFiniteLossError: a log-likelihood is NaN or infinite.
    """
    from lm_eval.api.metrics import mean

    samples = [sample for sample in samples if sample["filter"] == filter_name]
    is_mean = task.aggregation().get(metric, mean) is mean and all(metric in sample for sample in samples)
    values = tuple(float(sample[metric]) for sample in samples) if is_mean else ()
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice":
        return Items(values=values, answers=(), bits_per_byte=())
    for sample in samples:
        for value, _ in sample["filtered_resps"]:
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"task {task.task_name}: a log-likelihood of item {sample['doc_id']} is {value}"
                )
    answers = tuple(_answer(task, sample, metric) for sample in samples)
    bits = tuple(b for sample in samples if (b := _bits_per_byte(task, sample)) is not None)
    return Items(values=values, answers=answers, bits_per_byte=bits if len(bits) == len(samples) else ())


def join(tasks: Sequence[Items]) -> Items:
    """The items of several tasks, one task after another; empty where one of them has none."""

    def joined(parts: list[tuple]) -> tuple:
        return sum(parts, ()) if all(parts) else ()

    return Items(
        values=joined([items.values for items in tasks]),
        answers=joined([items.answers for items in tasks]),
        bits_per_byte=joined([items.bits_per_byte for items in tasks]),
    )


def _answer(task: Any, sample: dict[str, Any], metric: str) -> int:
    """The most likely choice, normalised as the metric does."""
    choices = task.doc_to_choice(sample["doc"])
    likelihoods = np.array([value for value, _ in sample["filtered_resps"]])
    # With acc_mutual_info, lm-eval also scores every choice without its context, after the others.
    conditional, unconditional = likelihoods[: len(choices)], likelihoods[len(choices) :]
    if metric == "acc_norm":
        conditional = conditional / np.array([len(choice) for choice in choices], dtype=float)
    elif metric == "acc_bytes":
        conditional = conditional / np.array([len(choice.encode()) for choice in choices], dtype=float)
    elif metric == "acc_mutual_info":
        conditional = conditional - unconditional
    return int(conditional.argmax())


def _bits_per_byte(task: Any, sample: dict[str, Any]) -> float | None:
    """Bits of the gold answer as it was scored, with spaces in front of it; of the likeliest where several are right.

    None where the data does not tell the right one.
    """
    choices = task.doc_to_choice(sample["doc"])
    # With several contexts and one continuation, such as winogrande's, doc_to_text is the index of the right context.
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else task.doc_to_target(sample["doc"])
    bits = []
    for answer in gold if isinstance(gold, list) else [gold]:
        index = choices.index(answer) if answer in choices else answer
        if not isinstance(index, int) or not 0 <= index < len(choices):
            continue
        context, continuation, *_ = sample["arguments"][index]
        # Spaces at the end of the context are scored with the continuation.
        scored = context[len(context.rstrip()) :] + continuation
        nats, _ = sample["filtered_resps"][index]
        bits.append(-nats / math.log(2) / len(scored.encode()))
    return min(bits, default=None)
