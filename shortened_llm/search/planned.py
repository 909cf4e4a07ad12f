"""The experiment as it is planned: everything that its report needs but the results."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from shortened_llm.config import ExperimentConfig
from shortened_llm.data.sources import Documents, TextRoles
from shortened_llm.evaluation.units import unit_fingerprint
from shortened_llm.records import (
    EvalScores,
    Experiment,
    Provenance,
    ReportedTrial,
    Scores,
    Size,
    TrainingData,
    TrialSpec,
    UnitScores,
    WidthScores,
)
from shortened_llm.records.objective import BITS_PER_BYTE
from shortened_llm.search.baseline import DenseScores
from shortened_llm.search.epochs import many_epochs
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.units import report_units

VERSIONED = ("torch", "transformers", "tokenizers", "datasets", "lm_eval", "ray")


def planned_experiment(
    config: ExperimentConfig,
    roles: TextRoles,
    space: SearchSpace,
    baseline: DenseScores,
    scores: Sequence[Scores],
    origin: Provenance,
    size: Size,
) -> Experiment:
    """The experiment without its trials.

    Args:
        size: that of the dense model.
    """
    return Experiment(
        name=config.experiment,
        model=config.model.path,
        dense_size=size,
        dense_url=space.dense.url,
        dense_fingerprint=space.dense.fingerprint,
        dense_selection=baseline.selection,
        dense_report=baseline.report,
        unit_scores=tuple(one for one in scores if isinstance(one, UnitScores)),
        width_scores=tuple(replace(one, groups=(), channels=()) for one in scores if isinstance(one, WidthScores)),
        trials=(),
        unseen_units=tuple(
            unit_fingerprint(unit, config.model.dtype)
            for unit in report_units(config, roles)
            if not _is_trained_on(unit.documents, config, roles)
        ),
        notes=(*_notes(config, roles), *_data_notes(config, roles, space.data)),
        versions=installed_versions(),
        provenance=origin,
        constraints=config.search.constraints.record if config.search.constraints else None,
    )


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that set numbers."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


def planned_trials(
    specs: Sequence[TrialSpec], left_out: Mapping[str, str] = MappingProxyType({})
) -> tuple[ReportedTrial, ...]:
    """Trials without results.

    Args:
        left_out: why a trial was, by its fingerprint.
    """
    return tuple(
        ReportedTrial(
            spec=spec, result=None, failure=None, before=EvalScores(), after=EvalScores(),
            left_out=left_out.get(spec.fingerprint),
        )
        for spec in specs
    )  # fmt: skip


def _data_notes(config: ExperimentConfig, roles: TextRoles, data: TrainingData) -> list[str]:
    """What packing found out about the training data."""
    corpus, pairs = (mixture.parts if mixture else () for mixture in (data.corpus, data.instructions))
    named = [(documents.source.label, part) for documents, part in zip(roles.train, corpus, strict=False)]
    named += [("instructions", part) for part in pairs]
    notes = [f"{name}: {note}." for name, part in named for note in part.notes]
    if data.corpus and (passes := many_epochs(config.retraining, data.corpus)):
        notes.append(passes)
    return notes


def _is_trained_on(documents: Documents, config: ExperimentConfig, roles: TextRoles) -> bool:
    """Whether other documents of the source are."""
    return config.retraining.uses_corpus and any(documents.places & trained.places for trained in roles.train)


def _notes(config: ExperimentConfig, roles: TextRoles) -> tuple[str, ...]:
    notes, retraining = [], config.retraining
    for documents in roles.report:
        label = documents.source.label
        if _is_trained_on(documents, config, roles):
            notes.append(f"{label}: other documents of this source were trained on; these were split off before.")
        elif "train" in documents.shared_with:
            notes.append(f"{label}: never trained on; blocks were scored on other documents of this source.")
        else:
            notes.append(f"{label}: never trained on.")
        if "selection" in documents.shared_with:
            notes.append(f"{label}: one source serves selection and report, split by document.")
    if roles.report and all(_is_trained_on(documents, config, roles) for documents in roles.report):
        notes.append("Every report text comes from a source that was trained on: adaptation to it counts as quality.")
    chosen_by = config.search.metric.removesuffix(BITS_PER_BYTE)
    if chosen_by in (*(task.task for task in config.evaluation.report.tasks), *config.evaluation.report.metrics):
        notes.append(f"{chosen_by}: the models were chosen by it and are reported by it, which flatters them.")
    if not roles.report:
        notes.append("No report texts were given: the perplexities shown also chose the models, which flatters them.")
    if retraining.runs:
        read = [f"sequences of {retraining.sequence_length} tokens, {retraining.global_batch_size} a step"]
        read = read if retraining.uses_corpus else []
        if retraining.uses_instructions and (pairs := retraining.instructions) is not None:
            read.append(f"pairs of at most {pairs.max_length} tokens, {pairs.global_batch_size} a step")
        notes.append(
            f"Retraining: AdamW, compute in {config.model.dtype} with float32 master weights of what is trained, "
            f"{'; '.join(read)}."
        )
    return tuple(notes)
