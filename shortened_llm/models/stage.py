"""Bring the dense model to where every node can read it, once, under a pinned identity."""

import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from shortened_llm.config import ModelConfig
from shortened_llm.errors import BadInputError, brief
from shortened_llm.fingerprint import file_sha256, fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.models.directory import load_config, load_gguf_metadata, load_tokenizer
from shortened_llm.models.files import is_head_among, read_headers
from shortened_llm.models.gguf import check_gguf, convert_gguf
from shortened_llm.models.inspection import check_directory, check_headers, check_special_tokens
from shortened_llm.records import ModelRef
from shortened_llm.storage.layout import MODELS
from shortened_llm.storage.payload import describe_files, download_directory, upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import content_key, download_file, exists, is_local, join, reached

STAGE_VERSION = 2
# Weights in other formats (pickle, ONNX, original checkpoints) are neither hashed nor copied.
METADATA_FILES = ("*.json", "*.model", "tokenizer*", "*.txt", "*.jinja", "LICENSE*")
MODEL_FILES = (*METADATA_FILES, "*.safetensors")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def stage_model(config: ModelConfig, store: Store) -> ModelRef:
    """The dense model as files that every node can read.

    A local directory is used where it lies when the storage is local too; everything else is copied below the
    storage URL, so that a hub or another bucket is asked once.

    Raises:
        BadInputError: the path leads to no causal language model with safetensors weights and a tokenizer.
    """
    if is_local(config.path) and Path(config.path).is_dir():
        directory = Path(config.path).absolute()
        blocks = load_config(directory).num_hidden_layers
        check_directory(directory)
        LOGGER.info("hashing the files of %s", directory)
        files = describe_files(directory, MODEL_FILES)
        identity = {"stage": STAGE_VERSION, "files": {entry.path: entry.sha256 for entry in files}}
        if is_local(store.url):
            return ModelRef(url=str(directory), fingerprint=fingerprint(identity), files=files, num_blocks=blocks)
        return store.read(MODELS, fingerprint(identity), ModelRef) or _upload(directory, store, identity)
    identity = _source_identity(config)
    if stored := store.read(MODELS, fingerprint(identity), ModelRef):
        return stored
    with temporary_directory() as temporary:
        LOGGER.info("fetching %s", config.path)
        return _upload(_fetch(config, identity, Path(temporary)), store, identity)


def inspect_model(config: ModelConfig) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """A model's configuration and tokenizer, once these and the headers of its weight files are checked.

    Of a model that is not on this machine, only those bytes are fetched; a GGUF file is fetched whole.

    Raises:
        BadInputError: the path leads to no causal language model with whole, unquantised safetensors weights.
    """
    with tempfile.TemporaryDirectory(prefix="shortened_llm_check_") as temporary:
        if not is_local(config.path):
            found = _remote_metadata(config, Path(temporary))
        elif Path(config.path).is_dir():
            directory = Path(config.path).absolute()
            check_directory(directory)
            found = load_config(directory), load_tokenizer(directory)
        elif Path(config.path).exists():
            found = _gguf_metadata(Path(config.path))
        else:
            found = _hub_metadata(config, Path(temporary))
    check_special_tokens(*found)
    return found


def _gguf_metadata(file: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    found = load_gguf_metadata(file)
    check_gguf(file, found[0])
    return found


def _remote_metadata(config: ModelConfig, temporary: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    with reached(f"model.path: {config.path!r}"):
        if config.path.endswith(".gguf"):
            return _gguf_metadata(download_file(config.path, temporary / "model.gguf"))
        if not exists(join(config.path, "config.json")):
            raise BadInputError(f"model.path: {config.path!r} holds no config.json")
        directory = download_directory(config.path, temporary, METADATA_FILES)
        headers = read_headers(config.path.rstrip("/"))
    model_config = load_config(directory, holds_head=is_head_among(headers.of))
    check_headers(model_config, headers)
    return model_config, load_tokenizer(directory)


def _hub_metadata(config: ModelConfig, temporary: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    commit = _hub_commit(config)
    try:
        snapshot_download(config.path, revision=commit, local_dir=temporary, allow_patterns=list(METADATA_FILES))
        headers = read_headers(f"hf://{config.path}@{commit}")
    except BadInputError:
        raise
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadInputError(f"model.path: the hub refuses the files of {config.path!r} ({brief(error)})") from None
    model_config = load_config(temporary, holds_head=is_head_among(headers.of))
    check_headers(model_config, headers)
    return model_config, load_tokenizer(temporary)


def _source_identity(config: ModelConfig) -> dict[str, object]:
    """What pins a model that is no local directory."""
    if is_local(config.path) and Path(config.path).is_file():
        return {"stage": STAGE_VERSION, "sha256": file_sha256(Path(config.path))}
    if "://" in config.path:
        return {"stage": STAGE_VERSION, "url": config.path, "content": content_key(config.path)}
    return {"stage": STAGE_VERSION, "hub": config.path, "commit": _hub_commit(config)}


def _hub_commit(config: ModelConfig) -> str:
    advice = (
        "give a Hugging Face directory, a hub id, an fsspec URL or a GGUF file "
        "(`python -m jobs.assets` stages the demo models)"
    )
    if not HUB_ID.fullmatch(config.path) or config.path.startswith("."):
        raise BadInputError(f"model.path: {config.path!r} does not exist; {advice}")
    try:
        return str(HfApi().model_info(config.path, revision=config.revision).sha)
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadInputError(
            f"model.path: {config.path!r} is no local path, and the hub does not give it ({brief(error)}); {advice}"
        ) from None


def _fetch(config: ModelConfig, identity: dict[str, object], temporary: Path) -> Path:
    directory = temporary / "model"
    if config.path.endswith(".gguf"):
        remote = not is_local(config.path)
        file = download_file(config.path, temporary / "model.gguf") if remote else Path(config.path)
        convert_gguf(file, directory)
    elif "://" in config.path:
        download_directory(config.path, directory, MODEL_FILES)
    elif "hub" in identity:
        commit = str(identity["commit"])
        snapshot_download(
            config.path,
            revision=commit,
            local_dir=directory,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*", "consolidated*"],  # the same weights again, in other layouts
        )
        shutil.rmtree(directory / ".cache", ignore_errors=True)
    else:
        raise BadInputError(f"model.path: {config.path!r} is a file, but no GGUF file; give its directory")
    return directory


def _upload(directory: Path, store: Store, identity: dict[str, object]) -> ModelRef:
    blocks = load_config(directory).num_hidden_layers
    check_directory(directory)
    load_tokenizer(directory)
    key = fingerprint(identity)
    url = store.attempt_url(MODELS, key)
    files = upload_directory(directory, url, MODEL_FILES)
    ref = ModelRef(url=url, fingerprint=key, files=files, num_blocks=blocks)
    store.write(MODELS, key, ref, identity=identity, parents=())
    return ref
