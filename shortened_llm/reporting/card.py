"""The model card of a shortened model: README.md as the Hugging Face hub reads it, and pruning.json."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from pydantic import TypeAdapter

from shortened_llm.criteria import CRITERIA
from shortened_llm.records import (
    EvalScores,
    Experiment,
    Provenance,
    PrunePlan,
    Recipe,
    ReportedTrial,
    RetrainedModel,
    SourceFacts,
    TrialResult,
    TrialSpec,
)
from shortened_llm.reporting.columns import Measurements, ScoreColumn, dense_measurements, ordered_columns
from shortened_llm.reporting.rows import TrialRow, trial_rows
from shortened_llm.reporting.templates import environment

PRUNING = "pruning.json"
NO_CRITERIA = ("dense", "chosen")
"""Labels of plans that no criterion made."""
NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|research", re.IGNORECASE)


def trial_cards(experiment: Experiment) -> dict[str, dict[str, str]]:
    """`{directory or URL of an exported model: {file name: text}}`."""
    dense = dense_measurements(experiment)
    rows = [row for row in trial_rows(experiment) if row.checkpoint_url]
    return {str(row.checkpoint_url): _trial_card(experiment, row, dense) for row in rows}


def _trial_card(experiment: Experiment, row: TrialRow, dense: Measurements) -> dict[str, str]:
    columns = [column for column in ordered_columns([dense, row.after]) if column in row.after]
    return {
        "README.md": _render(row.plan, experiment.num_blocks, experiment.provenance, row, dense, columns),
        PRUNING: _pruning_json(row.plan, experiment.model, experiment.provenance, row.trial),
    }


def trained_card(
    spec: TrialSpec, runs: tuple[RetrainedModel, ...], num_blocks: int, provenance: Provenance
) -> dict[str, str]:
    """The files of the card of a model that was retrained, and is not scored yet."""
    unscored = EvalScores()
    result = TrialResult(fingerprint=spec.fingerprint, runs=runs, before=unscored, after=unscored, seconds=0)
    trial = ReportedTrial(spec=spec, result=result, failure=None, before=unscored, after=unscored)
    row = TrialRow(number=1, trial=trial, status="done", best_of_size=False, before={}, after={})
    return {
        "README.md": _render(spec.plan, num_blocks, provenance, row, {}, []),
        PRUNING: _pruning_json(spec.plan, provenance.base_model, provenance, trial),
    }


def adapter_cards(
    spec: TrialSpec, runs: tuple[RetrainedModel, ...], num_blocks: int, provenance: Provenance
) -> dict[str, str]:
    """`{directory or URL of a run's adapters: text of its README.md}`."""
    before = (None, *(run.model.url for run in runs))
    return {
        run.adapter.url: _adapter_card(spec.plan, recipe, run.model.url, begins_with, num_blocks, provenance)
        for run, recipe, begins_with in zip(runs, spec.recipes, before, strict=False)
        if run.adapter
    }


def _adapter_card(
    plan: PrunePlan, recipe: Recipe, merged_url: str, begins_with: str | None, num_blocks: int, provenance: Provenance
) -> str:
    role = "training" if recipe.train_on == "corpus" else "instructions"
    sources = [source for source in provenance.sources if source.role == role]
    return (
        environment()
        .get_template("adapter_card.md.j2")
        .render(
            base=provenance.base_model,
            plan=plan,
            num_blocks=num_blocks,
            recipe=recipe,
            provenance=provenance,
            sources=sources,
            begins_with=begins_with,
            merged_url=merged_url,
            non_commercial=any(map(is_non_commercial, [provenance.base_license, *(s.license for s in sources)])),
            is_non_commercial=is_non_commercial,
        )
    )


def plan_card(plan: PrunePlan, num_blocks: int, provenance: Provenance) -> dict[str, str]:
    """The files of the card of a model that was pruned and not retrained."""
    return {
        "README.md": _render(plan, num_blocks, provenance, None, {}, []),
        PRUNING: _pruning_json(plan, provenance.base_model, provenance),
    }


def _pruning_json(
    plan: PrunePlan, base_model: str, provenance: Provenance | None, trial: ReportedTrial | None = None
) -> str:
    """What was removed, how the model was retrained, and the licences of what it was made of, for programs."""
    facts: dict[str, object] = {
        "name": trial.spec.name if trial else plan.name,
        "base_model": base_model,
        **asdict(plan),
        "labels": [{key: v for key, v in asdict(label).items() if v is not None} for label in plan.labels],
        "dtype": provenance.dtype if provenance else None,
        "base_license": provenance.base_license if provenance else None,
        "sources": [asdict(source) for source in _sources(plan, provenance, trial)],
    }
    if trial is not None and trial.result is not None:
        facts |= {
            "method": trial.spec.method,
            "recipes": [asdict(recipe) for recipe in trial.spec.recipes],
            "tokens": trial.result.tokens,
            "lineage": [run.model.fingerprint for run in trial.result.runs],
        }
    return json.dumps(TypeAdapter(dict).dump_python(facts, mode="json"), indent=2) + "\n"


def is_non_commercial(license: str | None) -> bool:
    """Whether a licence's name says so."""
    return bool(license and NON_COMMERCIAL.search(license.replace("-", " ").replace("_", " ")))


def _sources(plan: PrunePlan, provenance: Provenance | None, trial: ReportedTrial | None) -> list[SourceFacts]:
    """The data that this model was made with."""
    roles = {
        "training" if recipe.train_on == "corpus" else "instructions"
        for recipe in (trial.spec.recipes if trial else ())
        if recipe.num_steps
    }
    without_text = [name for name, row in CRITERIA.items() if not row.reads_text]
    if any(label.criterion not in (*without_text, *NO_CRITERIA) for label in plan.labels):
        roles.add("calibration")
    return [source for source in provenance.sources if source.role in roles] if provenance else []


def _render(
    plan: PrunePlan,
    num_blocks: int,
    provenance: Provenance | None,
    row: TrialRow | None,
    dense: Measurements,
    columns: Sequence[ScoreColumn],
) -> str:
    used = _sources(plan, provenance, row.trial if row else None)
    licences = [provenance.base_license if provenance else None, *(source.license for source in used)]
    return (
        environment()
        .get_template("card.md.j2")
        .render(
            plan=plan,
            num_blocks=num_blocks,
            provenance=provenance,
            sources=used,
            row=row,
            dense=dense,
            columns=columns,
            non_commercial=any(map(is_non_commercial, licences)),
            is_non_commercial=is_non_commercial,
            no_criteria=NO_CRITERIA,
        )
    )
