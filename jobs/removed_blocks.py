"""The flag that names blocks to remove by hand."""

import argparse

from shortened_llm.errors import BadInputError
from shortened_llm.records import BlocksTransform
from shortened_llm.search.preflight import Facts
from shortened_llm.search.preflight_toy import try_plans


def add_remove_flag(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add `--remove`.

    Args:
        otherwise: what is removed without it.
    """
    parser.add_argument(
        "--remove", metavar="BLOCKS", help=f"blocks to remove, such as 5,8,9; unless given, {otherwise}"
    )


def removed_blocks(text: str, facts: Facts) -> tuple[int, ...]:
    """The blocks of a flag such as `5,8,9`, ascending.

    Raises:
        BadInputError: they are no proper subset, or the architecture cannot lose them.
    """
    try:
        removed = {int(part) for part in text.split(",")}
    except ValueError:
        raise BadInputError(f"--remove: {text!r} is no list of block numbers, such as 5,8,9") from None
    every = range(facts.num_blocks)
    if not removed < set(every):
        raise BadInputError(f"--remove: is {text!r}; allowed are some of the blocks 0 to {facts.num_blocks - 1}")
    kept = tuple(block for block in every if block not in removed)
    try_plans(facts.model_config, facts.tokenizer, [(BlocksTransform(kept=kept),)])
    return tuple(sorted(removed))
