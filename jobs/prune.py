"""Write each plan of a configuration as a plain Hugging Face directory, without retraining; needs no Ray."""

from collections.abc import Sequence
from pathlib import Path

from jobs.cli import make_parser, parse_command, run
from jobs.score import score_here
from shortened_llm.logs import LOGGER
from shortened_llm.models.export import export_view
from shortened_llm.models.load import size_of
from shortened_llm.models.stage import stage_model
from shortened_llm.pruning.plan import make_plans
from shortened_llm.reporting.card import plan_card
from shortened_llm.search.preflight import check_search
from shortened_llm.search.provenance import provenance
from shortened_llm.storage.store import Store


def main(arguments: Sequence[str]) -> None:
    """stdout has the directory of each model, one line each."""
    parser = make_parser("prune", "Write pruned models, without retraining.")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="directory of the pruned models")
    config, flags = parse_command(parser, arguments)
    store = Store.at(config.storage.url)
    facts = check_search(config, store)
    if flags.dry_run:
        print(f"would write at most {len(config.scoring.criteria) * len(facts.counts)} models to {flags.output}")
        return
    dense = stage_model(config.model, store, on_progress=LOGGER.info)
    scores = score_here(config, facts, dense, store)
    size, origin = size_of(dense), provenance(config)
    for plan in make_plans(config.search, scores, size):
        labels = "_".join(f"{label.criterion}-{100 * label.ratio:.3g}" for label in plan.labels)
        directory = flags.output / labels
        export_view(dense.view(plan.kept_blocks), directory, config.model.dtype)
        for name, text in plan_card(plan, dense.num_blocks, origin).items():
            (directory / name).write_text(text)
        print(directory, flush=True)


if __name__ == "__main__":
    run(main)
