"""Under which licence the dense model and data are given."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CardData, HfApi, ModelCard

from shortened_llm.config import DataSource, ModelConfig
from shortened_llm.data.rows import find_files
from shortened_llm.errors import brief
from shortened_llm.logs import LOGGER
from shortened_llm.storage.urls import is_local

HUB_SECONDS = 10
"""For an answer of the hub: a licence is not worth a longer wait."""


def is_hub_id(path: str) -> bool:
    """Whether the path of a model that is there is the id of one on the hub: staging prefers what lies on disk."""
    return "://" not in path and not Path(path).exists()


def model_license(config: ModelConfig) -> str | None:
    """The licence that is configured, else the one of the model's card; None where there is none to read."""
    if config.license or not is_local(config.path):
        return config.license
    path = Path(config.path)
    if is_hub_id(config.path):
        return _read(
            config.path,
            lambda: HfApi().model_info(config.path, revision=config.revision, timeout=HUB_SECONDS).card_data,
        )
    if (path / "README.md").is_file():
        return _read(config.path, lambda: ModelCard.load(path / "README.md").data)
    if path.suffix == ".gguf":
        return _read(config.path, lambda: _card_of_gguf(path))
    return None


def data_license(source: DataSource, field_path: str) -> str | None:
    """The licence that is configured, else the one that the card of a hub data set states; None where nothing does.

    Args:
        field_path: where the source stands in the config, for messages.
    """
    if source.license:
        return source.license
    return _read(source.path, lambda: _card_of_data(source, field_path))


def _card_of_data(source: DataSource, field_path: str) -> CardData | None:
    if find_files(source.path, field_path):
        return None
    return HfApi().dataset_info(source.path, revision=source.revision, timeout=HUB_SECONDS).card_data


def _card_of_gguf(file: Path) -> CardData:
    from gguf import GGUFReader

    reader = GGUFReader(str(file))
    names = {"license": "general.license", "license_name": "general.license.name"}
    fields = {name: reader.get_field(key) for name, key in names.items()}
    return CardData(**{name: field.contents() for name, field in fields.items() if field})


def _read(path: str, card: Callable[[], CardData | None]) -> str | None:
    """What a card states; a card is written by people, and its place may be out of reach: neither may end a search."""
    try:
        found = card()
        return _stated(found) if found else None
    except Exception as error:  # of YAML, of the hub's client and of the libraries below it
        LOGGER.warning("the licence of %r cannot be read (%s)", path, brief(error))
        return None


def _stated(card: CardData) -> str | None:
    """`apache-2.0`; of several, all; a licence of its own, which cards call `other`, by its name."""
    license = card.get("license")
    licences = [license] if isinstance(license, str) else license if isinstance(license, list) else []
    own = card.get("license_name")
    named = [own if name == "other" and isinstance(own, str) else name for name in licences if isinstance(name, str)]
    return ", ".join(named) or None
