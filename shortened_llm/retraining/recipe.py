"""From the configuration to training runs: every point of the search as the chain of runs that it means."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from shortened_llm.config import RetrainingConfig
from shortened_llm.errors import BadInputError
from shortened_llm.fields import only, points
from shortened_llm.methods import METHODS
from shortened_llm.methods.method import OptimizerOptions, Run, corpus_steps
from shortened_llm.records import Recipe

Chain = tuple[Recipe, ...]


def chains(config: RetrainingConfig, method: str, budget: int, num_pairs: int | None) -> Iterator[Chain]:
    """The runs of `method`, one chain for each combination of values on its axes, such as learning rate and seed; a
    range stands for its middle. Where nothing is trained, one chain without a run.

    Args:
        budget: tokens of a chain on the corpus.
        num_pairs: pairs of the instruction data, which have a budget of their own: epochs. None before they are
            counted; the runs on them are then of any length.

    Raises:
        BadInputError: a warm-up is longer than its run.
    """
    for point in points(config.axes(method)):
        yield chain_at(point, config, method, budget, num_pairs)


def chain_at(
    point: Mapping[str, Any], config: RetrainingConfig, method: str, budget: int, num_pairs: int | None
) -> Chain:
    """The runs of `method` at one point of the search: a value for each of the method's axes, by field. See `chains`
    for the rest."""
    fixed = config.at(method, point)
    (chain,) = fixed.chains(method)
    steps = corpus_steps(chain, budget // fixed.tokens_per_step)
    return tuple(
        _recipe(fixed, run, own if run.train_on == "corpus" else _steps_on(fixed, num_pairs))
        for run, own in zip(chain, steps, strict=True)
    )


def one_behind_another(recipes: Iterable[Recipe]) -> Chain:
    """The runs of a trial, of which each reads on where the one before it on the same data ended."""
    found, ends = list[Recipe](), dict[str, int]()
    for recipe in recipes:
        first = ends.get(recipe.train_on, 0)
        found.append(replace(recipe, first_sequence=first))
        ends[recipe.train_on] = first + recipe.num_steps * recipe.global_batch_size
    return tuple(found)


def _steps_on(config: RetrainingConfig, num_pairs: int | None) -> int:
    """Optimiser steps of a run on instructions."""
    assert config.instructions is not None  # the configuration was checked
    if num_pairs is None:
        return 2**31
    return max(1, round(config.instructions.epochs * num_pairs / config.instructions.global_batch_size))


def _recipe(config: RetrainingConfig, run: Run, steps: int) -> Recipe:
    row = METHODS[run.method]
    options: OptimizerOptions = config.options(run.method)
    pairs = config.instructions if run.train_on == "instructions" else None
    warmup = round(options.warmup_ratio * steps) if options.warmup_steps is None else options.warmup_steps
    if options.warmup_steps is not None and 0 < steps <= warmup:
        on = " on instructions" if pairs else ""
        raise BadInputError(
            f"retraining.{run.method}.warmup_steps: is {warmup}, but a {run.method} run{on} has {steps} optimiser "
            f"steps; at most {steps - 1} are allowed"
        )
    return Recipe(
        method=run.method,
        train_on=run.train_on,
        num_steps=steps,
        global_batch_size=pairs.global_batch_size if pairs else config.global_batch_size,
        sequence_length=pairs.max_length if pairs else config.sequence_length,
        seed=only(config.seed),
        learning_rate=only(options.learning_rate),
        weight_decay=options.weight_decay,
        betas=options.betas,
        max_gradient_norm=options.max_gradient_norm,
        schedule=options.schedule,
        warmup_steps=min(warmup, max(0, steps - 1)),  # a share may round up to the whole of a short run
        decay_steps=min(max(1, round(options.decay_ratio * steps)), max(1, steps - warmup)),
        final_learning_rate_ratio=options.final_learning_rate_ratio,
        isolate_documents=config.isolate_documents and pairs is None,
        lora=row.adapters(options) if row.adapters else None,
        distill=row.distill(options) if row.distill else None,
        options=options.own if row.trained else {},
    )
