"""Where the models of an experiment come from, and the cards that tell it."""

from collections.abc import Mapping
from typing import Literal

from shortened_llm.config import DataSource, ExperimentConfig, entry_paths
from shortened_llm.errors import last_line
from shortened_llm.logs import LOGGER
from shortened_llm.models.license import data_license, is_hub_id, model_license
from shortened_llm.records import Experiment, Provenance, PrunePlan, RetrainedModel, SourceFacts, TrialSpec
from shortened_llm.reporting.card import PRUNING, adapter_cards, trained_card, trial_cards
from shortened_llm.storage.urls import exists, join, write_bytes

Role = Literal["calibration", "training", "instructions"]


def provenance(config: ExperimentConfig) -> Provenance:
    """State the origin of every model that the configuration leads to."""
    retraining = config.retraining
    named: list[tuple[str, DataSource, Role, str]] = []
    if config.reads_calibration:
        paths = entry_paths("calibration", config.calibrations)
        named += [(one.label, one, "calibration", path) for one, path in zip(config.calibrations, paths, strict=True)]
    if retraining.uses_corpus:
        named += [(one.label, one, "training", f"retraining.data.{i}") for i, one in enumerate(retraining.data)]
    if retraining.uses_instructions and (pairs := retraining.instructions) is not None:
        named.append((pairs.path, pairs, "instructions", "retraining.instructions"))
    return Provenance(
        base_model=config.model.path,
        on_hub=is_hub_id(config.model.path),
        base_license=model_license(config.model),
        dtype=config.model.exported_dtype,
        sources=tuple(
            SourceFacts(name=name, path=source.path, role=role, license=data_license(source, field_path))
            for name, source, role, field_path in named
        ),
    )


def publish_cards(experiment: Experiment) -> None:
    """Write each exported model's card beside its weights; a place that cannot be written is logged and passed over."""
    for url, files in trial_cards(experiment).items():
        _write_card(url, files)


def publish_trained_card(
    spec: TrialSpec, plan: PrunePlan, runs: tuple[RetrainedModel, ...], origin: Provenance
) -> None:
    """Write the card of a model that was just exported: nobody should find it without its licences. One that has a
    card keeps it."""
    for url, text in adapter_cards(spec, plan, runs, origin).items():
        _write_card(url, {"README.md": text})
    _write_card(runs[-1].model.url, trained_card(spec, plan, runs, origin), is_first=True)


def _write_card(url: str, files: Mapping[str, str], *, is_first: bool = False) -> None:
    try:
        if is_first and exists(join(url, PRUNING)):
            return
        for name, text in files.items():
            write_bytes(join(url, name), text.encode())
    except Exception as error:  # every protocol has its own errors
        LOGGER.error("the model card at %s cannot be written: %s", url, last_line(error))
