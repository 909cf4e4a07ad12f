"""Whether runs can be continued from rung to rung."""

from itertools import product

from shortened_llm.config.retraining import RetrainingConfig
from shortened_llm.config.search import SearchSection
from shortened_llm.methods.method import Chain, corpus_steps


def check_rungs(search: SearchSection, retraining: RetrainingConfig) -> None:
    """Check that every run on the corpus can go on at the next rung: that is from before its decay, which only wsd has,
    and with the warm-up of the whole budget behind it.

    Raises:
        ValueError: naming the field.
    """
    for method in retraining.methods if search.rungs else ():
        numbers = retraining.rounds(method, search.rounds)
        every = product(retraining.chains(method), search.rungs, retraining.budgets, numbers)
        for chain, share, budget, rounds in every:
            _check_chain(chain, method, share, budget // retraining.tokens_per_step, retraining, rounds)


def _check_chain(
    chain: Chain, method: str, share: float, steps: int, retraining: RetrainingConfig, rounds: int
) -> None:
    for run, total in zip(chain, corpus_steps(chain, steps), strict=True):
        if run.train_on != "corpus":
            continue
        whole = total // rounds
        options, own = retraining.options(run.method), round(share * whole)
        field, warmup = f"retraining.{run.method}", options.warmup_steps
        if options.schedule != "wsd":
            raise ValueError(
                f"{field}.schedule is {options.schedule!r}, but search.rungs continues runs from before their decay; "
                "set wsd, or drop rungs"
            )
        if warmup is None:
            warmup = round(options.warmup_ratio * total)
        warmup = round(warmup / rounds)
        if own <= warmup:
            each = f" in each of {rounds} rounds" if rounds > 1 else ""
            raise ValueError(
                f"search.rungs: with {share:g} of the tokens a {run.method} run of {method} has {own} steps{each}, no "
                f"more than its warm-up of {warmup}; raise the rung or the tokens, or set fewer {field}.warmup_steps"
            )
