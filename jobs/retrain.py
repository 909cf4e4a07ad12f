"""Retrain one plan alone, outside a search."""

from collections.abc import Sequence

from jobs.cli import check_placement, make_parser, parse_command, run
from shortened_llm.config import SearchConfig
from shortened_llm.errors import BadInputError
from shortened_llm.search.dress_rehearsal import rehearse_plans
from shortened_llm.search.preflight import ScoringFacts, check_retraining
from shortened_llm.search.retrain import retrain_plan
from shortened_llm.storage.store import Store


def main(arguments: Sequence[str]) -> None:
    """stdout has a line for each run of the methods: its losses and the directory of the model."""
    parser = make_parser("retrain", "Retrain one plan by every method, without a search and without evaluation.")
    parser.add_argument(
        "--remove",
        metavar="BLOCKS",
        help="blocks to remove, such as 5,8,9; unless given, those that the first criterion removes at the first ratio",
    )
    config, flags = parse_command(parser, arguments)
    config = first_plan(config)
    store = Store.at(config.storage.url)
    facts = check_retraining(config, store)
    kept = None if flags.remove is None else kept_blocks(flags.remove, facts)
    check_placement(config.resources, dry_run=flags.dry_run)
    if flags.dry_run:
        blocks = f"blocks {flags.remove}" if kept else f"what {config.scoring.criteria[0]} removes"
        print(f"would retrain {config.model.path} without {blocks} by {', '.join(config.retraining.methods)}")
        return
    for spec, runs in retrain_plan(config, facts, store, kept):
        for recipe, done in zip(spec.recipes, runs, strict=True):
            losses = f"loss {done.history[0].loss:.3f} -> {done.history[-1].loss:.3f}" if done.history else "untrained"
            speed = f", {done.tokens:,} tokens in {done.seconds:.0f} s" if done.tokens else ""
            print(f"{spec.plan.name} {recipe.method} lr {recipe.learning_rate:g} seed {recipe.seed}: {losses}{speed}")
            print(f"  {done.model.url}" + (f"\n  adapter: {done.adapter.url}" if done.adapter else ""), flush=True)


def first_plan(config: SearchConfig) -> SearchConfig:
    """The configuration with its first criterion and its first ratio, or count, alone."""
    search = config.search
    one = {"ratios": search.ratios[:1], "removed_blocks": () if search.ratios else search.removed_blocks[:1]}
    tokens = config.retraining.tokens
    budget = tokens[search.ratios[0]] if isinstance(tokens, dict) else tokens
    return config.model_copy(
        update={
            "scoring": config.scoring.model_copy(update={"criteria": config.scoring.criteria[:1]}),
            "search": search.model_copy(update=one),
            "retraining": config.retraining.model_copy(update={"tokens": budget}),
        }
    )


def kept_blocks(text: str, facts: ScoringFacts) -> tuple[int, ...]:
    """The blocks that stay where those of a flag such as `5,8,9` go.

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
    rehearse_plans(facts.model_config, facts.tokenizer, [kept])
    return kept


if __name__ == "__main__":
    run(main)
