"""Tokens per second, ours against transformers' `Trainer` and accelerate's FSDP2."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shortened_llm.retraining.job import RetrainingJob
from tests.benchmarks.retraining.fsdp2 import with_accelerate
from tests.benchmarks.retraining.ours import with_ours
from tests.benchmarks.retraining.processes import run
from tests.benchmarks.retraining.setup import held_out_segments, make_job
from tests.benchmarks.retraining.trainer import with_trainer

STEPS = 14
# The first ones fill allocators and caches.
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """A way to train, and how often it is run: the fastest run counts, since other work only ever slows one."""

    train: Callable[..., dict]
    arguments: tuple
    processes: int
    repeats: int = 2
    prepared: bool = True


def against_trainer(directory: Path, steps: int | None) -> dict:
    """One process each; and the perplexity that the same tokens led to."""
    job = make_job(directory, steps=steps or STEPS)
    texts = held_out_segments()
    found = _compare(
        job,
        {
            "ours": Competitor(train=with_ours, arguments=(job, texts), processes=1),
            "Trainer": Competitor(train=with_trainer, arguments=(job, texts, False), processes=1),
            "Trainer, allocator and threads as torch has them": Competitor(
                train=with_trainer, arguments=(job, {}, False), processes=1, repeats=1, prepared=False
            ),
        },
    )
    ours, theirs = (found[name]["perplexity"] for name in ("ours", "Trainer"))
    print("held-out perplexity after the same tokens, ours / Trainer's:")
    for text in texts:
        print(f"  {text:<6}{ours[text]:8.2f} / {theirs[text]:.2f} = {ours[text] / theirs[text]:.4f}")
    return found


def against_fsdp2(directory: Path, steps: int | None) -> dict:
    """Two processes each."""
    job = make_job(directory, steps=steps or STEPS, micro_batch=2)
    found = _compare(
        job,
        {
            "ours": Competitor(train=with_ours, arguments=(job,), processes=2),
            "accelerate FSDP2": Competitor(train=with_accelerate, arguments=(job, "float32"), processes=2),
            "accelerate FSDP2, gradients reduced in bfloat16": Competitor(
                train=with_accelerate, arguments=(job, "bfloat16"), processes=2, repeats=1
            ),
            "accelerate FSDP2, allocator as torch has it": Competitor(
                train=with_accelerate, arguments=(job, "float32"), processes=2, repeats=1, prepared=False
            ),
        },
    )
    last = job.recipe.num_steps
    losses = {name: figures["losses"][last] for name, figures in found.items()}
    print("loss of the last step: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    print("accelerate leaves FSDP2 out on CPU without a word: see fsdp2.py for how it is made to use it")
    return found


def _compare(job: RetrainingJob, competitors: dict[str, Competitor]) -> dict[str, dict]:
    """Run all in turn, print tokens per second, and return each one's fastest run."""
    runs: dict[str, list[dict]] = {name: [] for name in competitors}
    for repeat in range(max(competitor.repeats for competitor in competitors.values())):
        for name, competitor in competitors.items():
            if repeat < competitor.repeats:
                figures = run(
                    competitor.train, *competitor.arguments,
                    processes=competitor.processes, prepared=competitor.prepared,
                )  # fmt: skip
                runs[name].append(figures | _speed(figures["ends"], job.recipe.tokens_per_step))
    best = {name: max(every, key=lambda figures: figures["tokens_per_second"]) for name, every in runs.items()}
    recipe = job.recipe
    print(
        f"{recipe.global_batch_size} x {recipe.sequence_length} tokens a step, {job.dtype} with float32 weights, steps "
        f"{WARM_UP + 1} to {recipe.num_steps}, fastest of the runs"
    )
    print(f"{'':52}{'runs':>5}{'tokens/s':>10}{'median step':>13}{'ours':>8}")
    for name, figures in best.items():
        ratio = best["ours"]["tokens_per_second"] / figures["tokens_per_second"]
        print(
            f"{name:52}{len(runs[name]):5}{figures['tokens_per_second']:10.0f}"
            f"{figures['median_step_seconds']:11.2f} s{ratio:7.2f}x"
        )
    return best


def _speed(ends: dict[int, float], tokens_per_step: int) -> dict[str, float]:
    steps = sorted(step for step in ends if step >= WARM_UP)
    each = [ends[after] - ends[before] for before, after in itertools.pairwise(steps)]
    tokens = (steps[-1] - steps[0]) * tokens_per_step
    return {
        "tokens_per_second": tokens / (ends[steps[-1]] - ends[steps[0]]),
        "median_step_seconds": statistics.median(each),
    }
