"""After the search: measure the report scores once, and gather everything into the Experiment record."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shortened_llm.config import SearchConfig
from shortened_llm.data.sources import TextRoles
from shortened_llm.evaluation.evaluate import Unit
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.models.files import model_size, open_tensor_files
from shortened_llm.models.load import model_directory
from shortened_llm.records import (
    BlockScores,
    EvalScores,
    Experiment,
    ModelRef,
    ReportedTrial,
    TrialFailure,
    TrialResult,
    TrialSpec,
)
from shortened_llm.reporting.rows import best_of_each_size
from shortened_llm.search.prepare import report_units, selection_units, task_units
from shortened_llm.search.progress import Progress
from shortened_llm.search.trial import KIND
from shortened_llm.storage.store import Store

VERSIONED = ("torch", "transformers", "tokenizers", "datasets", "lm_eval", "ray")


def gather(
    config: SearchConfig,
    dense: ModelRef,
    roles: TextRoles,
    scores: Sequence[BlockScores],
    specs: Sequence[TrialSpec],
    failures: Mapping[str, TrialFailure],
    store: Store,
    pool: EvaluationPool,
    progress: Progress,
) -> Experiment:
    """Score the dense model and every plan, before and after retraining, on the report texts; tasks for the dense
    model and the best model of each size."""
    texts, tasks = report_units(config, roles), task_units(config)
    trials = [
        ReportedTrial(
            spec=spec,
            result=store.read(KIND, spec.fingerprint, TrialResult),
            failure=failures[spec.fingerprint].cause if spec.fingerprint in failures else None,
            before=EvalScores(),
            after=EvalScores(),
        )
        for spec in specs
    ]
    best = {trial.spec.fingerprint for trial in best_of_each_size(trials).values()}
    progress(f"scoring the dense model and {len(specs)} trials")
    evaluator = progress.about("evaluator")
    all_units: tuple[Unit, ...] = (*texts, *tasks)
    dense_selection = pool.submit(dense, selection_units(config, roles), evaluator)
    dense_report = pool.submit(dense, all_units, evaluator)
    pending = [
        None
        if trial.result is None
        else (
            pool.submit(dense.view(trial.spec.plan.kept_blocks), texts, evaluator),
            pool.submit(
                trial.result.retrained.model, all_units if trial.spec.fingerprint in best else texts, evaluator
            ),
        )
        for trial in trials
    ]
    for index, scores_to_come in enumerate(pending):
        if scores_to_come is not None:
            before, after = scores_to_come
            trials[index] = replace(trials[index], before=pool.result(before), after=pool.result(after))
            progress(f"scored {index + 1}/{len(specs)} trials")
    files = open_tensor_files(model_directory(dense))
    experiment = Experiment(
        name=config.experiment,
        model=config.model.path,
        num_blocks=dense.num_blocks,
        dense_parameters=model_size(files, dense.num_blocks).parameters(dense.kept_blocks),
        dense_url=dense.url,
        dense_selection=pool.result(dense_selection),
        dense_report=pool.result(dense_report),
        block_scores=tuple(scores),
        trials=tuple(trials),
        notes=_notes(config, roles),
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
    )
    progress(None)
    return experiment


def _notes(config: SearchConfig, roles: TextRoles) -> tuple[str, ...]:
    notes = []
    selection = {documents.source.path for documents in roles.selection}
    training = {documents.source.path for documents in roles.train}
    for documents in roles.report:
        label = documents.source.label
        if documents.source.path in training:
            notes.append(
                f"{label}: the report text comes from a source that was also trained on; its documents were split off "
                "before training."
            )
        else:
            notes.append(f"{label}: never trained on.")
        if documents.source.path in selection:
            notes.append(f"{label}: one source serves selection and report, split by document.")
    if not roles.report:
        notes.append("No report texts were given: the scores shown also chose the models, which flatters them.")
    recipe = config.retraining
    notes.append(
        f"Retraining: {recipe.num_steps} steps of {recipe.global_batch_size} x {recipe.sequence_length} tokens, AdamW, "
        f"warm-up {recipe.cpt.warmup_ratio:g} then cosine, seed {recipe.seed}, compute in {config.model.dtype} with "
        "float32 master weights."
    )
    notes.append(f"Selection and report scores are computed in {config.model.dtype}.")
    return tuple(notes)
