"""What is known of a search whose model is not there yet: what it costs is asked before its model is fetched."""

from dataclasses import dataclass
from pathlib import Path

from shortened_llm.config import ExperimentConfig
from shortened_llm.data.sources import text_roles
from shortened_llm.errors import BadInputError, Faults
from shortened_llm.models.directory import load_config
from shortened_llm.models.view import size_of
from shortened_llm.pruning.target import Request
from shortened_llm.records import ModelSize
from shortened_llm.search.preflight_settings import (
    ModelFacts,
    asked_sizes,
    check_context,
    check_settings,
    check_storage,
)
from shortened_llm.storage.store import Store

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
"""Endings of files that hold weights, whether they can be read or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline(ModelFacts):
    """What is known of a search whose model is not there yet."""

    unchecked: tuple[str, ...]
    """Checks that were left out, each with its reason."""


def outline_search(config: ExperimentConfig, store: Store) -> Outline | None:
    """What a configuration and the model's config.json tell, where the model's directory holds no weights; None where
    it has some, or is no directory. For dry runs: what a search costs is asked before its model is fetched.

    Raises:
        BadInputError: as `check_config`, of what needs neither weights nor tokenizer.
    """
    directory = Path(config.model.path)
    if not (directory / "config.json").is_file() or any(WEIGHTS & {*file.suffixes} for file in directory.iterdir()):
        return None
    faults, model_config = Faults(), load_config(directory)
    size: ModelSize | None = None
    asked: tuple[Request, ...] = ()
    with faults.gather():
        check_storage(config, store, searches=True)
    check_settings(config, faults, retrains=True, evaluates=True, searches=True)
    with faults.gather():
        size = size_of(model_config, config.model.exported_dtype)
        asked = asked_sizes(config, model_config, size)
    check_context(config, model_config, faults)
    faults.raise_any()
    assert size is not None, "a fault was told"
    unchecked = [
        f"the weights and the tokenizer: {directory} holds no weights",
        "what texts and tasks hold, and each step of the job on a toy of the model: these need the tokenizer",
    ]
    try:
        text_roles(config)
    except BadInputError as error:
        unchecked += str(error).splitlines()
    return Outline(model_config=model_config, size=size, requests=asked, unchecked=tuple(unchecked))
