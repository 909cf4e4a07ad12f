"""Write each plan of a configuration as a plain Hugging Face directory, without retraining; needs no Ray."""

import re
from collections.abc import Iterator, Sequence

from jobs.cli import make_parser, open_store, output_directory, parse_command, run
from jobs.removed_blocks import add_remove_flag, removed_blocks
from jobs.score import DEVICE, score_here
from shortened_llm.config import ExperimentConfig
from shortened_llm.logs import LOGGER, about
from shortened_llm.models.export import export_view
from shortened_llm.models.stage import stage_model
from shortened_llm.pruning.plan import choices, chosen_plan, make_plans
from shortened_llm.records import ModelRef, ModelSize, PlanLabel, PrunePlan, Scores
from shortened_llm.reporting.card import plan_card
from shortened_llm.scoring.job import ScoringJob, by_ranking, scoring_jobs
from shortened_llm.search.preflight import Facts, check_config
from shortened_llm.search.stored.provenance import provenance
from shortened_llm.search.works import pending_works, plan_works, with_works
from shortened_llm.storage.placement import placed
from shortened_llm.storage.store import Store

LONGEST_NAME = 200
"""Characters of a directory's name."""


def main(arguments: Sequence[str]) -> None:
    """stdout has the directory of each model, one line each."""
    parser = make_parser("prune", "Write pruned models, without retraining.")
    parser.add_argument(
        "--output", metavar="DIR", type=output_directory, required=True, help="directory of the pruned models"
    )
    add_remove_flag(parser, "those that each criterion removes at each ratio, a model each")
    config, flags = parse_command(parser, arguments, ["search"])
    store = open_store(config)
    facts = check_config(config, store, exports=True)
    removed = None if flags.remove is None else removed_blocks(flags.remove, facts)
    if flags.dry_run:
        number = 1 if removed else sum(config.num_rankings(request.unit) for request in facts.requests)
        print(f"would write at most {number} models to {flags.output}")
        return
    dense = stage_model(config.model, store)
    origin = provenance(config)
    LOGGER.info("writing weights in %s", config.model.exported_dtype)
    for name, plan in _plans(config, facts, dense, store, removed):
        with placed(str(flags.output / name)) as directory:
            export_view(dense.view(plan.transforms), directory, config.model.exported_dtype)
            for file, text in plan_card(plan, origin).items():
                (directory / file).write_text(text)
        print(flags.output / name, flush=True)


def _file_name(label: PlanLabel) -> str:
    told_apart = [re.sub(r"[^\w.=+-]+", "-", part) for part in (label.calibration, label.settings) if part]
    of_unit = {"block": [], "sublayer": ["sublayers"], "width": ["width"], "weight": ["weights"]}[label.unit]
    # Ratios that are written alike in a table are other models.
    ratio, of = f"{100 * label.target.ratio:.6g}", label.target.name.partition("%")[2].replace(" ", "-")
    return "-".join([label.criterion, *of_unit, *told_apart, ratio + of])


def _directory_name(plan: PrunePlan) -> str:
    """Every label that led to the plan, as far as file systems take such a name; its first label is no other plan's."""
    first, *others = map(_file_name, plan.labels)
    name = "_".join([first, *others])
    return name if len(name) <= LONGEST_NAME else f"{first}_and-{len(others)}-more"


def _plans(
    config: ExperimentConfig, facts: Facts, dense: ModelRef, store: Store, removed: tuple[int, ...] | None
) -> Iterator[tuple[str, PrunePlan]]:
    """Each plan with the name of its directory."""
    if removed is not None:
        yield f"without-{'-'.join(map(str, removed))}", chosen_plan(removed, facts.size)
        return
    jobs = scoring_jobs(config, dense, facts.roles.calibration, facts.counts)
    for plan in plans_here(config, jobs, score_here(jobs, config, store), facts.size, store):
        yield _directory_name(plan), plan


def plans_here(
    config: ExperimentConfig, jobs: Sequence[ScoringJob], scores: Sequence[Scores], size: ModelSize, store: Store
) -> tuple[PrunePlan, ...]:
    """The plans by the scores that the jobs ask for, compensated in this process."""
    chosen = choices(config.search, scores, size)
    wanted = plan_works(chosen, by_ranking(scores, jobs), size)
    for name, work in pending_works(wanted, store):
        with about(name):
            work.compute(store, device=DEVICE, memory_gib=config.resources.scoring_memory_gib)
    return make_plans(with_works(chosen, wanted, store), size)


if __name__ == "__main__":
    run(main)
