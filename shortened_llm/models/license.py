"""Under which licence the dense model is given."""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from shortened_llm.config import ModelConfig
from shortened_llm.storage.urls import is_local


def find_license(config: ModelConfig) -> str | None:
    """As configured, else as the model's card states it; None where nothing does."""
    if config.license or not is_local(config.path):
        return config.license
    path = Path(config.path)
    if (path / "README.md").is_file():
        return _stated(ModelCard.load(path / "README.md").data.license)
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path)
    if path.exists():
        return None
    try:
        card = HfApi().model_info(config.path, revision=config.revision).card_data
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return None
    return _stated(card.license) if card else None


def _stated(license: object) -> str | None:
    return license if isinstance(license, str) else None


def _of_gguf(file: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(str(file)).get_field("general.license")
    return _stated(field.contents()) if field else None
