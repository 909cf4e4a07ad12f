"""What all trials share, computed once as Ray tasks: block scores and packed tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from shortened_llm.config import CalibrationConfig, Criterion, RetrainingConfig, ScoringConfig, SearchConfig
from shortened_llm.data.packing import pack_tokens
from shortened_llm.data.sources import Documents, TextRoles
from shortened_llm.evaluation.evaluate import TaskUnit, TextUnit
from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import prepare_cpu
from shortened_llm.models.load import load_tokenizer, model_directory
from shortened_llm.records import BlockScores, ModelRef, TokenDataset
from shortened_llm.scoring.score import score_blocks
from shortened_llm.search.progress import Progress
from shortened_llm.storage.store import Store

# Lost tasks are started again by Ray; what they had stored is read back.
RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Inputs of the search."""

    scores: tuple[BlockScores, ...]
    tokens: TokenDataset


def prepare(dense: ModelRef, config: SearchConfig, roles: TextRoles, store: Store, progress: Progress) -> Prepared:
    """Score the blocks by every criterion and pack the training text, in parallel."""
    tokens = _pack.options(num_cpus=config.resources.cpus_per_evaluator).remote(
        dense, roles.train, config.retraining, store, progress.about("tokens")
    )
    scores = submit_scores(dense, config, roles.calibration, store, progress)
    return Prepared(scores=tuple(ray.get(scores)), tokens=ray.get(tokens))


def submit_scores(
    dense: ModelRef, config: SearchConfig, calibration: Documents, store: Store, progress: Progress
) -> "list[ray.ObjectRef[BlockScores]]":
    """Begin to score the blocks, one task per criterion."""
    resources = config.resources
    task = _score.options(num_cpus=resources.cpus_per_scorer, num_gpus=resources.gpus_per_scorer)
    for criterion in config.scoring.criteria:
        progress.about(f"score {criterion}")("waiting for its resources")
    return [
        task.remote(
            criterion,
            dense,
            calibration,
            config.calibration,
            config.scoring,
            store,
            math.ceil(resources.cpus_per_scorer),
            progress.about(f"score {criterion}"),
        )
        for criterion in config.scoring.criteria
    ]


@ray.remote(max_retries=RETRIES)
def _score(
    criterion: Criterion,
    dense: ModelRef,
    documents: Documents,
    calibration: CalibrationConfig,
    scoring: ScoringConfig,
    store: Store,
    threads: int,
    progress: Progress,
) -> BlockScores:
    quiet_libraries()
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    if device == "cpu":
        prepare_cpu(threads)
    progress("loading the model")
    scores = score_blocks(
        criterion, dense, documents, calibration, scoring, store, device=device, on_progress=progress.steps
    )
    progress(None)
    return scores


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
