"""Load a model or a view of it. A view is built from the kept tensors, never cut out of a live model."""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.errors import BadInputError
from shortened_llm.models.cut import cut_config
from shortened_llm.models.files import open_tensor_files, renumbered
from shortened_llm.records import ModelRef
from shortened_llm.storage.payload import local_directory

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def model_directory(ref: ModelRef) -> Path:
    """The model's files on this node."""
    return local_directory(ref.url, ref.files)


def load_config(directory: Path) -> PretrainedConfig:
    """The configuration of a causal language model.

    Raises:
        BadInputError: there is none, it cannot be read, or it is of another kind of model.
    """
    if not (directory / "config.json").is_file():
        raise BadInputError(f"model.path: {directory} has no config.json; give a Hugging Face model directory")
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"model.path: cannot read {directory / 'config.json'}: {error}") from None
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "num_hidden_layers", None)
    # Encoders such as BERT can be built as decoders too; what was saved says what they are.
    saved_as = config.architectures or ["ForCausalLM"]
    if not known or not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved_as):
        raise BadInputError(
            f"model.path: {directory} holds a {config.model_type!r} model, which transformers does not know as a "
            "causal language model with decoder blocks"
        )
    return config


def load_gguf_metadata(file: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a GGUF file; raises `BadInputError` where transformers cannot read them."""
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        return config, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # a damaged header surfaces as errors of many kinds
        raise BadInputError(f"model.path: {str(file)!r} cannot be read as GGUF ({error})") from None


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer; raises `BadInputError` where it is missing or cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        raise BadInputError(f"model.path: no usable tokenizer in {directory} ({error})") from None


def load_model(ref: ModelRef, dtype: str, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model of `ref`, in evaluation mode.

    The tensors of the kept blocks are renumbered as they are named on disk; transformers then applies its own
    conversion from disk to memory. `layer_idx`, and with it the KV cache, comes out right because the model is built
    with its final number of blocks.
    """
    directory = model_directory(ref)
    config = cut_config(load_config(directory), ref.kept_blocks)
    files = open_tensor_files(directory)
    state = dict(files.read(renumbered(files.shapes, ref.kept_blocks, ref.num_blocks)))
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=DTYPES[dtype])
    if (directory / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(directory)
    return model.to(device).eval()


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model without weights: parameters on the meta device, buffers real, since rotary frequencies are not stored."""
    with init_empty_weights(include_buffers=False):
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
