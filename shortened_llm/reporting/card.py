"""The model card of a shortened model: README.md as the Hugging Face hub reads it, and pruning.json."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace

from pydantic import TypeAdapter

from shortened_llm.criteria import CRITERIA
from shortened_llm.records import (
    BlocksTransform,
    EvalScores,
    Experiment,
    ModelRef,
    PlanLabel,
    Provenance,
    PrunePlan,
    Recipe,
    ReportedTrial,
    RetrainedModel,
    SourceFacts,
    TrialResult,
    TrialSpec,
    WeightsTransform,
    WidthsTransform,
    of_kind,
    without_places,
)
from shortened_llm.reporting.columns import Measurements, ScoreColumn, dense_measurements, score_columns
from shortened_llm.reporting.rows import TrialRow, trial_rows
from shortened_llm.reporting.templates import environment

PRUNING = "pruning.json"
NO_CRITERIA = ("dense", "chosen")
"""Labels of plans that no criterion made."""
NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|research", re.IGNORECASE)


def trial_cards(experiment: Experiment) -> dict[str, dict[str, str]]:
    """`{directory or URL of an exported model: {file name: text}}`."""
    # Controls, which come last, may share a candidate's model; its card is the candidate's.
    rows = reversed(trial_rows(experiment))
    return {row.checkpoint_url: trial_card(experiment, row) for row in rows if row.checkpoint_url}


def trial_card(experiment: Experiment, row: TrialRow) -> dict[str, str]:
    """The files of the card of a trial's model, with the scores that it has by now."""
    columns = [column for column in score_columns(experiment) if column in row.after]
    return _card(row.plan, experiment.provenance, row, dense_measurements(experiment), columns)


def trained_card(
    spec: TrialSpec, plan: PrunePlan, runs: tuple[RetrainedModel, ...], provenance: Provenance
) -> dict[str, str]:
    """The files of the card of a model that was retrained by a plan, and is not scored yet."""
    unscored = EvalScores()
    result = TrialResult(
        fingerprint=spec.fingerprint, model=runs[-1].model, runs=runs, before=unscored, after=unscored, seconds=0,
        plan=plan,
    )  # fmt: skip
    trial = ReportedTrial(spec=spec, result=result, failure=None, before=unscored, after=unscored)
    row = TrialRow(number=1, trial=trial, status="done", best_of=(), before={}, after={})
    return _card(plan, provenance, row, {}, [])


def adapter_cards(
    spec: TrialSpec, plan: PrunePlan, runs: tuple[RetrainedModel, ...], provenance: Provenance
) -> dict[str, str]:
    """`{directory or URL of a run's adapters: text of its README.md}`."""
    cards, earlier = {}, None
    for run, recipe in zip(runs, spec.recipes, strict=False):
        own = _plan_of_run(plan, run.model) if spec.rounds else plan
        if run.adapter:
            lost = _lost(earlier, own) if spec.rounds and earlier else ()
            cards[run.adapter.url] = _adapter_card(own, recipe, run.model.url, earlier, lost, provenance)
        earlier = run.model
    return cards


def _plan_of_run(plan: PrunePlan, model: ModelRef) -> PrunePlan:
    """What a run's model is without, where later rounds take more."""
    return replace(plan, transforms=model.origin or (), size=replace(plan.size, blocks=model.num_blocks))


def _lost(earlier: ModelRef, plan: PrunePlan) -> tuple[int, ...]:
    """Blocks that a round took from the model of the run before, in that model's indices."""
    gone = replace(plan, transforms=earlier.origin or ()).removed_blocks
    left = [block for block in range(plan.dense.blocks) if block not in gone]
    return tuple(index for index, block in enumerate(left) if block in plan.removed_blocks)


def _reads_text(label: PlanLabel) -> bool:
    """Whether the ranking may have: single weights and widths by their shares, refits and biases too."""
    row = CRITERIA.get(label.criterion)
    return label.unit in ("weight", "width") or row is None or row.reads_text


def _calibrated_on(source: SourceFacts, provenance: Provenance, labels: Sequence[PlanLabel]) -> bool:
    """Whether a calibration text served one of the rankings; where there are several, the labels of those that read
    text say which, by its name where that tells them apart."""
    names = [one.name for one in provenance.sources if one.role == "calibration"]
    told = [label.calibration for label in labels if _reads_text(label)]
    if len(names) == 1:
        return bool(told)

    def names_it(text: str, name: str) -> bool:
        return text == name or text.startswith(f"{name} ")

    read = [text for text in told if text is not None]
    return any(names_it(text, source.name) or not any(names_it(text, name) for name in names) for text in read)


def _is_padded(plan: PrunePlan) -> bool:
    """Whether blocks of different widths are padded to the widest."""
    widths = of_kind(plan.transforms, WidthsTransform)
    return widths is not None and any(" to " in text for text in widths.facts(plan.dense.blocks).values())


def _has_zeros(plan: PrunePlan) -> bool:
    """Whether a plain export holds zeros in the place of what was removed."""
    return any(not transform.is_compact for transform in plan.transforms)


def _is_of_blocks(plan: PrunePlan) -> bool:
    """Whether whole blocks are all that was removed."""
    return all(isinstance(transform, BlocksTransform) for transform in plan.transforms)


def _adapter_card(
    plan: PrunePlan,
    recipe: Recipe,
    merged_url: str,
    earlier: ModelRef | None,
    lost: tuple[int, ...],
    provenance: Provenance,
) -> str:
    role = "training" if recipe.train_on == "corpus" else "instructions"
    sources = [source for source in provenance.sources if source.role == role]
    return (
        environment()
        .get_template("adapter_card.md.j2")
        .render(
            base=provenance.base_model,
            plan=plan,
            recipe=recipe,
            provenance=provenance,
            sources=sources,
            begins_with=earlier.url if earlier else None,
            lost=lost,
            is_of_blocks=_is_of_blocks(plan),
            merged_url=merged_url,
            non_commercial=any(map(is_non_commercial, [provenance.base_license, *(s.license for s in sources)])),
            is_non_commercial=is_non_commercial,
        )
    )


def plan_card(plan: PrunePlan, provenance: Provenance) -> dict[str, str]:
    """The files of the card of a model that was pruned and not retrained."""
    return _card(plan, provenance, None, {}, [])


def _pruning_json(plan: PrunePlan, provenance: Provenance, trial: ReportedTrial | None) -> str:
    """What was removed, how the model was retrained, and the licences of what it was made of, for programs."""
    facts: dict[str, object] = {
        "name": trial.spec.name if trial else plan.name,
        "base_model": provenance.base_model,
        "origin": [asdict(transform) for transform in without_places(plan.transforms)],
        **{name: _numbers(text) for name, text in plan.facts.items()},
        "labels": [{key: v for key, v in asdict(label).items() if v is not None} for label in plan.labels],
        "size": asdict(plan.size),
        "base_size": asdict(plan.dense),
        "dtype": provenance.dtype,
        "base_license": provenance.base_license,
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


def _numbers(text: str) -> list[int] | str:
    """Indices as a list; other facts are words."""
    words = text.split()
    return [int(word) for word in words] if all(word.isdigit() for word in words) else text


def is_non_commercial(license: str | None) -> bool:
    """Whether a licence's name says so."""
    return bool(license and NON_COMMERCIAL.search(license.replace("-", " ").replace("_", " ")))


def _sources(plan: PrunePlan, provenance: Provenance, trial: ReportedTrial | None) -> list[SourceFacts]:
    """The data that this model was made with."""
    roles = {
        "training" if recipe.train_on == "corpus" else "instructions"
        for recipe in (trial.spec.recipes if trial else ())
    }
    named = [label for label in plan.labels if label.criterion not in NO_CRITERIA]
    return [
        source
        for source in provenance.sources
        if source.role in roles or (source.role == "calibration" and _calibrated_on(source, provenance, named))
    ]


def _card(
    plan: PrunePlan,
    provenance: Provenance,
    row: TrialRow | None,
    dense: Measurements,
    columns: Sequence[ScoreColumn],
) -> dict[str, str]:
    trial = row.trial if row else None
    used = _sources(plan, provenance, trial)
    readme = (
        environment()
        .get_template("card.md.j2")
        .render(
            plan=plan,
            provenance=provenance,
            sources=used,
            row=row,
            dense=dense,
            columns=columns,
            non_commercial=any(map(is_non_commercial, [provenance.base_license, *(one.license for one in used)])),
            is_non_commercial=is_non_commercial,
            no_criteria=NO_CRITERIA,
            is_of_blocks=_is_of_blocks(plan),
            has_zeros=_has_zeros(plan),
            is_padded=_is_padded(plan),
            is_sparse=of_kind(plan.transforms, WeightsTransform) is not None,
        )
    )
    return {"README.md": readme, PRUNING: _pruning_json(plan, provenance, trial)}
