"""Where the models of an experiment come from, and the cards that tell it."""

from typing import Literal

from shortened_llm.config import DataSource, SearchConfig
from shortened_llm.models.license import find_license
from shortened_llm.records import Experiment, Provenance, SourceFacts
from shortened_llm.reporting.card import trial_cards
from shortened_llm.storage.urls import join, write_bytes

Role = Literal["calibration", "training", "instructions"]


def provenance(config: SearchConfig) -> Provenance:
    """Of every model that the configuration leads to."""
    retraining = config.retraining
    named: list[tuple[str, DataSource, Role]] = [(config.calibration.label, config.calibration, "calibration")]
    if retraining.uses_corpus:
        named += [(source.label, source, "training") for source in retraining.data]
    if retraining.uses_instructions and retraining.instructions is not None:
        named.append((retraining.instructions.path, retraining.instructions, "instructions"))
    return Provenance(
        base_model=config.model.path,
        base_license=find_license(config.model),
        sources=tuple(
            SourceFacts(name=name, path=source.path, role=role, license=source.license) for name, source, role in named
        ),
    )


def publish_cards(experiment: Experiment) -> None:
    """Write each exported model's card beside its weights."""
    for url, files in trial_cards(experiment).items():
        for name, text in files.items():
            write_bytes(join(url, name), text.encode())
