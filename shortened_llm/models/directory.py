"""What lies in a model directory beside its weights: configuration, tokenizer, generation settings."""

import json
from collections.abc import Mapping
from pathlib import Path

import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.errors import BadInputError, brief, last_line
from shortened_llm.models.families import TEXT_PARTS
from shortened_llm.models.files import has_head
from shortened_llm.records import FileEntry, ModelRef
from shortened_llm.storage.payload import local_directory

QUANTISED = ("quantization_config", "compression_config")
"""Fields of a config.json whose weights are no numbers by themselves."""


def model_directory(ref: ModelRef) -> Path:
    """The model's files on this node.

    Raises:
        FileNotFoundError: one is gone.
    """
    return _on_this_node(ref, ref.files)


def metadata_directory(ref: ModelRef) -> Path:
    """The model's files but its weights, which may be too large for a node that needs none; raises as
    `model_directory`. For the tokenizer: what a configuration leaves to the files, `load_config` reads with them."""
    return _on_this_node(ref, tuple(entry for entry in ref.files if not entry.path.endswith(".safetensors")))


def _on_this_node(ref: ModelRef, files: tuple[FileEntry, ...]) -> Path:
    try:
        return local_directory(ref.url, files)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model {ref.url}: its files are gone ({last_line(error)}); put them back, or run the search again, which "
            "retrains a model without files"
        ) from None


def load_config(directory: Path, *, holds_head: bool | None = None) -> PretrainedConfig:
    """The configuration of a causal language model, or of the text part of one of `TEXT_PARTS`.

    Args:
        holds_head: whether the model's files hold a head of the language model; looked up in `directory` unless given.

    Raises:
        BadInputError: there is none, it cannot be read, or it is of another kind of model.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise BadInputError(f"model.path: {directory} has no config.json; give a Hugging Face model directory")
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise BadInputError(f"model.path: {file} cannot be read as JSON ({brief(error)})") from None
    refuse_foreign_code(file, values, known=values.get("model_type") in CONFIG_MAPPING)
    for field in QUANTISED:
        if values.get(field):
            raise BadInputError(
                f"model.path: {file} has a {field}; quantised weights cannot be pruned or trained: give the "
                "full-precision model"
            )
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # of every class that checks its own numbers
        raise BadInputError(
            f"model.path: {file} is no configuration that transformers reads ({brief(error)})"
        ) from None
    if config.model_type in TEXT_PARTS:
        config = _text_part(config, values, has_head(directory) if holds_head is None else holds_head)
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "num_hidden_layers", None)
    # Encoders such as BERT can be built as decoders too; what was saved says what they are.
    saved_as = config.architectures or ["ForCausalLM"]
    if not known or not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved_as):
        raise BadInputError(
            f"model.path: {directory} holds a {config.model_type!r} model, which transformers does not know as a "
            "causal language model with decoder blocks"
        )
    config._attn_implementation = None  # a wish of whoever saved it, for kernels that may be missing here
    return config


def _text_part(config: PretrainedConfig, values: Mapping[str, object], holds_head: bool | None) -> PretrainedConfig:
    """The configuration of the text part, with what that of the whole model says for it.

    Where it does not say whether the head is tied, both have a default of their own: then a head in the files is none.
    """
    text = config.text_config
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config
    for name in ("tie_word_embeddings", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"):
        if (value := getattr(config, name, None)) is not None:
            setattr(text, name, value)
    if "tie_word_embeddings" not in values and holds_head is not None:
        text.tie_word_embeddings = not holds_head
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(text)].__name__]
    return text


def load_gguf_metadata(file: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a GGUF file; raises `BadInputError` where transformers cannot read them."""
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # a damaged header surfaces as errors of many kinds
        raise BadInputError(f"model.path: {str(file)!r} cannot be read as GGUF ({brief(error)})") from None
    return config, tokenizer


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer; raises `BadInputError` where it is missing or cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        raise BadInputError(f"model.path: no usable tokenizer in {directory} ({brief(error)})") from None


def refuse_foreign_code(file: Path, values: Mapping[str, object], *, known: bool) -> None:
    """Raises `BadInputError` where a configuration asks for Python code that lies beside it, which is never run.

    Args:
        known: whether transformers has a class of its own for it.
    """
    if values.get("auto_map") and not known:
        raise BadInputError(
            f"model.path: {file} needs Python code of its author (auto_map), which is never run; give a model of a "
            f"family that transformers {transformers.__version__} has itself"
        )


def set_generation_config(model: PreTrainedModel, directory: Path) -> None:
    """Give `model` the generation settings that lie beside its weights, where there are any."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return
    try:
        model.generation_config = type(model.generation_config).from_pretrained(directory)
    except Exception as error:  # of a class that checks its own numbers
        raise BadInputError(f"model.path: {file} cannot be read ({brief(error)}); mend or remove it") from None
