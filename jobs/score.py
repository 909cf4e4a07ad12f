"""Score the blocks of a model; needs no Ray."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from jobs.cli import make_parser, parse_command, run
from shortened_llm.config import SearchConfig
from shortened_llm.data.sources import Documents
from shortened_llm.logs import LOGGER, StepLog
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.models.stage import stage_model
from shortened_llm.records import BlockScores, ModelRef, to_json
from shortened_llm.scoring.score import score_blocks
from shortened_llm.scoring.table import score_table
from shortened_llm.search.preflight import check_scoring
from shortened_llm.storage.store import Store


def score_here(config: SearchConfig, model: ModelRef, calibration: Documents, store: Store) -> Iterator[BlockScores]:
    """The scores by each criterion of the configuration, computed in this process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prepare_cpu(fair_threads(1))
    for criterion in config.scoring.criteria:
        yield score_blocks(
            criterion,
            model,
            calibration,
            config.calibration,
            config.scoring,
            store,
            device=device,
            on_progress=StepLog(f"score {criterion}"),
        )


def main(arguments: Sequence[str]) -> None:
    """Tables go to stderr; stdout has the JSON of each criterion's scores, one line each."""
    parser = make_parser("score", "Score the blocks of a model.")
    parser.add_argument("--output", metavar="DIR", type=Path, help="also write each criterion as DIR/<criterion>.json")
    config, flags = parse_command(parser, arguments)
    store = Store.at(config.storage.url)
    facts = check_scoring(config, store)
    if flags.dry_run:
        print(f"would score {facts.num_blocks} blocks by {', '.join(config.scoring.criteria)}")
        return
    model = stage_model(config.model, store, on_progress=LOGGER.info)
    for scores in score_here(config, model, facts.roles.calibration, store):
        print(score_table(scores), file=sys.stderr)
        print(to_json(scores, indent=None), flush=True)
        if flags.output:
            flags.output.mkdir(parents=True, exist_ok=True)
            (flags.output / f"{scores.criterion}.json").write_text(to_json(scores))


if __name__ == "__main__":
    run(main)
