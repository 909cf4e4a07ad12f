"""From the configuration to training runs: every method, learning rate and seed as the chain of runs that it means."""

from collections.abc import Iterator
from itertools import product
from typing import Literal

from shortened_llm.config import Method, OptimizerConfig, RetrainingConfig, TrainOn
from shortened_llm.errors import BadInputError
from shortened_llm.records import DistillOptions, LoraOptions, Recipe

Chain = tuple[Recipe, ...]


def chains(config: RetrainingConfig, method: Method, budget: int, num_pairs: int | None) -> Iterator[Chain]:
    """The runs of `method`, one chain for each learning rate and seed; the chain of `none` has no run.

    Args:
        budget: tokens of a chain on the corpus.
        num_pairs: pairs of the instruction data, which have a budget of their own: epochs. None before they are
            counted; the runs on them are then of any length.

    Raises:
        BadInputError: a warm-up is longer than its run.
    """
    steps = budget // config.tokens_per_step
    if method == "none":
        yield ()
        return
    for seed in config.seed:
        if method in ("cpt", "distill", "last_blocks"):
            options: OptimizerConfig = getattr(config, method)
            for rate in options.learning_rate:
                yield (_run(config, options, method, rate, steps, seed),)
        elif method == "lora":
            for train_on, rate in product(config.lora.train_on, config.lora.learning_rate):
                yield (_adapters(config, train_on, rate, steps, num_pairs, seed),)
        else:
            rates = product(config.lora.train_on, config.cpt.learning_rate, config.lora.learning_rate)
            for train_on, cpt_rate, lora_rate in rates:
                first = steps if train_on == "instructions" else round(config.cpt_lora.cpt_share * steps)
                yield (
                    _run(config, config.cpt, "cpt", cpt_rate, first, seed),
                    _adapters(config, train_on, lora_rate, steps - first, num_pairs, seed),
                )


def lora_options(config: RetrainingConfig) -> LoraOptions:
    """The adapters that a configuration asks for."""
    return LoraOptions(
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
    )


def _adapters(
    config: RetrainingConfig, train_on: TrainOn, rate: float, steps: int, num_pairs: int | None, seed: int
) -> Recipe:
    if train_on == "corpus":
        return _run(config, config.lora, "lora", rate, steps, seed)
    assert config.instructions is not None  # the configuration was checked
    pairs = config.instructions
    steps = 2**31 if num_pairs is None else max(1, round(pairs.epochs * num_pairs / pairs.global_batch_size))
    return _run(config, config.lora, "lora", rate, steps, seed, train_on="instructions")


def _run(
    config: RetrainingConfig,
    options: OptimizerConfig,
    method: Literal["cpt", "lora", "distill", "last_blocks"],
    rate: float,
    steps: int,
    seed: int,
    *,
    train_on: TrainOn = "corpus",
) -> Recipe:
    pairs = config.instructions if train_on == "instructions" else None
    warmup = round(options.warmup_ratio * steps) if options.warmup_steps is None else options.warmup_steps
    if options.warmup_steps is not None and 0 < steps <= warmup:
        on = " on instructions" if pairs else ""
        raise BadInputError(
            f"retraining.{method}.warmup_steps: is {warmup}, but a {method} run{on} has {steps} optimiser steps; at "
            f"most {steps - 1} are allowed"
        )
    return Recipe(
        method=method,
        train_on=train_on,
        num_steps=steps,
        global_batch_size=pairs.global_batch_size if pairs else config.global_batch_size,
        sequence_length=pairs.max_length if pairs else config.sequence_length,
        seed=seed,
        learning_rate=rate,
        weight_decay=options.weight_decay,
        betas=options.betas,
        max_gradient_norm=options.max_gradient_norm,
        schedule=options.schedule,
        warmup_steps=min(warmup, max(0, steps - 1)),  # a share may round up to the whole of a short run
        decay_steps=min(max(1, round(options.decay_ratio * steps)), max(1, steps - warmup)),
        final_learning_rate_ratio=options.final_learning_rate_ratio,
        isolate_documents=config.isolate_documents and pairs is None,
        lora=lora_options(config) if method == "lora" else None,
        distill=DistillOptions(
            temperature=config.distill.temperature, hard_loss_weight=config.distill.hard_loss_weight
        ) if method == "distill" else None,
        tuned_blocks=config.last_blocks.num_blocks if method == "last_blocks" else None,
    )  # fmt: skip
