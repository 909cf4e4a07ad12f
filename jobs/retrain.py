"""Retrain one plan alone, outside a search."""

from collections.abc import Sequence

from jobs.cli import check_with_placement, make_parser, open_store, parse_command, run
from jobs.removed_blocks import add_remove_flag, removed_blocks
from shortened_llm.config import ExperimentConfig
from shortened_llm.errors import BadInputError
from shortened_llm.records import RetrainedModel
from shortened_llm.search.preflight import Facts, check_config
from shortened_llm.search.retrain import retrain_plan


def main(arguments: Sequence[str]) -> None:
    """stdout has a line for each run of the methods: its losses and the directory of the model."""
    parser = make_parser("retrain", "Retrain one plan by every method, without a search and without evaluation.")
    add_remove_flag(parser, "those that the first criterion removes at the first ratio")
    config, flags = parse_command(parser, arguments, ["search", "retraining"])
    config = first_plan(config)
    store = open_store(config)

    def check() -> tuple[Facts, tuple[int, ...] | None]:
        facts = check_config(config, store, retrains=True)
        return facts, None if flags.remove is None else removed_blocks(flags.remove, facts)

    (facts, removed), _ = check_with_placement(check, config.resources, dry_run=flags.dry_run)
    if flags.dry_run:
        blocks = f"blocks {flags.remove}" if removed else f"what {config.prunings[0].criteria[0]} removes"
        print(f"would retrain {config.model.path} without {blocks} by {', '.join(config.retraining.methods)}")
        return
    for spec, runs in retrain_plan(config, facts, store, removed):
        if not runs:
            print(f"{spec.name}: a view of the dense model's files, which jobs.prune writes")
        for recipe, done in zip(spec.recipes, runs, strict=True):
            speed = f", {done.tokens:,} tokens in {done.seconds:.0f} s" if done.tokens else ""
            name = f"{spec.plan.name} {recipe.method} lr {recipe.learning_rate:g} seed {recipe.seed}"
            print(f"{name}: {losses(done)}{speed}")
            print(f"  {done.model.url}" + (f"\n  adapter: {done.adapter.url}" if done.adapter else ""), flush=True)


def losses(run: RetrainedModel) -> str:
    """What a run has gained on the validation sequences, which are the same before and after."""
    before, after = run.first_validation_loss, run.last_validation_loss
    if before is None or after is None:
        return f"training loss {run.history[-1].loss:.3f} at the end; no selection text fills a validation sequence"
    return f"validation loss {before:.3f} -> {after:.3f}"


def first_plan(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with its first criterion, calibration and ratio, or count, alone.

    Raises:
        BadInputError: a value is to be sampled.
    """
    search = config.search
    if config.ranges:
        listed = "; ".join(f"{field}: is {axis}" for field, axis in config.ranges.items())
        raise BadInputError(f"{listed}, which jobs.search samples; give jobs.retrain values")
    assert isinstance(search.ratios, tuple)
    one = {"ratios": search.ratios[:1], "removed_blocks": () if search.ratios else search.removed_blocks[:1]}
    tokens = config.retraining.tokens
    budget = tokens[search.ratios[0]] if isinstance(tokens, dict) else tokens
    first = config.prunings[0]
    return config.model_copy(
        update={
            "calibration": config.calibrations[0],
            "pruning": first.model_copy(update={"criteria": first.criteria[:1]}),
            "search": search.model_copy(update=one),
            "retraining": config.retraining.model_copy(update={"tokens": budget}),
        }
    )


if __name__ == "__main__":
    run(main)
