"""What all trials share, computed once as Ray tasks: block scores and packed tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from shortened_llm.config import ResourcesConfig, RetrainingConfig, SearchConfig
from shortened_llm.data.packing import pack_tokens
from shortened_llm.data.sources import Documents, TextRoles
from shortened_llm.evaluation.evaluate import TaskUnit, TextUnit
from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import prepare_cpu
from shortened_llm.models.load import load_tokenizer, model_directory
from shortened_llm.records import BlockScores, ModelRef, TokenDataset
from shortened_llm.scoring.job import ScoringJob, Unit
from shortened_llm.scoring.measure import measure, pending_units
from shortened_llm.scoring.score import score_blocks
from shortened_llm.search.preflight import SearchFacts
from shortened_llm.search.progress import Progress
from shortened_llm.storage.store import Store

# Lost tasks are started again by Ray, and do what they had not stored yet.
RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Inputs of the search."""

    scores: tuple[BlockScores, ...]
    tokens: TokenDataset


def prepare(dense: ModelRef, config: SearchConfig, facts: SearchFacts, store: Store, progress: Progress) -> Prepared:
    """Score the blocks by every criterion and pack the training text, in parallel."""
    tokens = _pack.options(num_cpus=config.resources.cpus_per_evaluator).remote(
        dense, facts.roles.train, config.retraining, store, progress.about("tokens")
    )
    job = ScoringJob.of(config, dense, facts.roles.calibration, facts.counts)
    scores = score(job, config, store, progress)
    return Prepared(scores=scores, tokens=ray.get(tokens))


def score(job: ScoringJob, config: SearchConfig, store: Store, progress: Progress) -> tuple[BlockScores, ...]:
    """The scores by every criterion: what is not stored yet is measured first, one Ray task per unit of work."""
    resources, criteria = config.resources, config.scoring.criteria
    task = _measure.options(num_cpus=resources.cpus_per_scorer, num_gpus=resources.gpus_per_scorer)
    tasks = []
    for unit in pending_units(criteria, job, store, resources.scoring_shards):
        about = progress.about(f"score {unit.name}")
        about("waiting for its resources")
        tasks.append(task.remote(unit, job, store, resources, about))
    ray.get(tasks)
    return tuple(score_blocks(c, job, store, num_shards=resources.scoring_shards) for c in criteria)


@ray.remote(max_retries=RETRIES)
def _measure(unit: Unit, job: ScoringJob, store: Store, resources: ResourcesConfig, progress: Progress) -> None:
    quiet_libraries()
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    if device == "cpu":
        prepare_cpu(math.ceil(resources.cpus_per_scorer))
    progress("reading the model")
    measure(unit, job, store, device=device, memory_gib=resources.scoring_memory_gib, on_progress=progress.steps)
    progress(None)


@ray.remote(max_retries=RETRIES)
def _pack(
    dense: ModelRef, documents: Sequence[Documents], retraining: RetrainingConfig, store: Store, progress: Progress
) -> TokenDataset:
    quiet_libraries()
    directory = model_directory(dense)
    dataset = pack_tokens(
        tuple(documents),
        load_tokenizer(directory),
        dense.fingerprint,
        retraining.sequence_length,
        retraining.num_steps * retraining.global_batch_size,
        store,
        on_progress=progress,
    )
    progress(None)
    return dataset


def selection_units(config: SearchConfig, roles: TextRoles) -> tuple[TextUnit, ...]:
    """What steers the search."""
    sources = config.evaluation.selection.perplexity
    return tuple(TextUnit(documents=d, source=s) for d, s in zip(roles.selection, sources, strict=True))


def report_units(config: SearchConfig, roles: TextRoles) -> tuple[TextUnit, ...]:
    """Texts measured for every model after the search."""
    sources = config.evaluation.report.perplexity
    return tuple(TextUnit(documents=d, source=s) for d, s in zip(roles.report, sources, strict=True))


def task_units(config: SearchConfig) -> tuple[TaskUnit, ...]:
    """Tasks measured for the dense model and the best of each size."""
    evaluation = config.evaluation
    return tuple(
        TaskUnit(task=task, directory=evaluation.task_directory, limit=evaluation.task_limit)
        for task in evaluation.report.tasks
    )
