"""Score the blocks of a model; needs no Ray."""

import sys
from collections.abc import Sequence

import torch

from jobs.cli import make_parser, open_store, output_directory, parse_command, run
from shortened_llm.config import ExperimentConfig, require_sections
from shortened_llm.errors import BadInputError
from shortened_llm.logs import about
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.models.stage import stage_model
from shortened_llm.records import Scores, UnitScores, WeightRanking, to_json
from shortened_llm.scoring.job import ScoringJob, scoring_jobs, work_name
from shortened_llm.scoring.measure import measure, pending_work
from shortened_llm.scoring.score import score_all
from shortened_llm.scoring.table import score_table, width_table
from shortened_llm.search.preflight import check_config
from shortened_llm.storage.store import Store

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def score_here(jobs: Sequence[ScoringJob], config: ExperimentConfig, store: Store) -> tuple[Scores, ...]:
    """The scores that the jobs ask for, measured in this process."""
    prepare_cpu(fair_threads(1))
    for unit, job in pending_work(jobs, store, num_shards=1):
        with about(f"score {work_name(unit, job)}"):
            measure(unit, job, store, device=DEVICE, memory_gib=config.resources.scoring_memory_gib)
    return score_all(jobs, store)


def file_names(scores: Sequence[Scores]) -> list[str]:
    """`<criterion>.json`, or `<criterion>-<number>.json` where there are several rankings by a criterion."""
    criteria = [one.criterion for one in scores]
    return [
        f"{name}-{criteria[: index + 1].count(name)}.json" if criteria.count(name) > 1 else f"{name}.json"
        for index, name in enumerate(criteria)
    ]


def main(arguments: Sequence[str]) -> None:
    """Tables go to stderr; stdout has the JSON of each criterion's scores, one line each."""
    parser = make_parser("score", "Score the blocks of a model.")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=output_directory,
        help="also write DIR/<criterion>.json; DIR/<criterion>-<number>.json, in the order "
        "of the configuration, where there are several rankings by a criterion",
    )
    config, flags = parse_command(parser, arguments)
    if any(entry.rows[criterion].searches for entry in config.prunings for criterion in entry.criteria):
        require_sections(config, ["search"], "jobs.score")
    if weights := [entry for entry in config.prunings if entry.unit == "weight"]:
        raise BadInputError(
            f"pruning.unit: is 'weight', but {', '.join(weights[0].criteria)} have no scores ahead: each block is "
            "pruned behind the pruned ones; jobs.prune writes the models"
        )
    store = open_store(config)
    facts = check_config(config, store)
    if flags.dry_run:
        print(f"would score {facts.num_blocks} blocks by {', '.join(config.criteria)}")
        return
    model = stage_model(config.model, store)
    every = score_here(scoring_jobs(config, model, facts.roles.calibration, facts.counts), config, store)
    for scores in every:
        assert not isinstance(scores, WeightRanking), "refused"
        print(score_table(scores) if isinstance(scores, UnitScores) else width_table(scores), file=sys.stderr)
        print(to_json(scores, indent=None), flush=True)
    if flags.output:
        flags.output.mkdir(parents=True, exist_ok=True)
        for name, scores in zip(file_names(every), every, strict=True):
            (flags.output / name).write_text(to_json(scores))


if __name__ == "__main__":
    run(main)
