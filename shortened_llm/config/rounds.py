"""Whether blocks can go in rounds."""

from itertools import product

from shortened_llm.config.retraining import RetrainingConfig
from shortened_llm.config.search import SearchSection
from shortened_llm.methods.method import corpus_steps


def check_rounds(search: SearchSection, retraining: RetrainingConfig) -> None:
    """Check that something is trained in every round.

    Raises:
        ValueError: naming the field.
    """
    most = max(search.rounds)
    if most == 1:
        return
    methods = [method for method in retraining.methods if retraining.has_rounds(method)]
    if not methods:
        raise ValueError(
            f"search.rounds is {list(search.rounds)}, but no method of {list(retraining.methods)} trains the weights "
            "that a round leaves; add one, such as cpt, or drop rounds"
        )
    for method, budget in product(methods, retraining.budgets):
        for chain in retraining.chains(method):
            steps = corpus_steps(chain, budget // retraining.tokens_per_step)
            for run, own in zip(chain, steps, strict=True):
                if run.train_on == "corpus" and own < most:
                    raise ValueError(
                        f"search.rounds: {most} rounds divide the tokens of a {run.method} run of {method}, which has "
                        f"{own} optimiser steps; give more retraining.tokens or fewer rounds"
                    )
