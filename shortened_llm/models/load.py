"""Load a model or a view of it. A view is built from the kept tensors, never cut out of a live model."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import local_torch_dtype
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.errors import BadInputError, brief, last_line
from shortened_llm.models.cut import cut_config
from shortened_llm.models.files import BLOCK_NAME, model_size, open_tensor_files, renumbered
from shortened_llm.records import ModelRef, ModelSize
from shortened_llm.storage.payload import local_directory

QUANTISED = ("quantization_config", "compression_config")
"""Fields of a config.json whose weights are no numbers by themselves."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def model_directory(ref: ModelRef) -> Path:
    """The model's files on this node.

    Raises:
        FileNotFoundError: one is gone.
    """
    try:
        return local_directory(ref.url, ref.files)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model {ref.url}: its files are gone ({last_line(error)}); put them back, or run the search again, which "
            "retrains a model without files"
        ) from None


def size_of(ref: ModelRef) -> ModelSize:
    """Parameters of the blocks and of the rest, in the model's files."""
    return model_size(open_tensor_files(model_directory(ref)), ref.num_blocks)


def load_config(directory: Path) -> PretrainedConfig:
    """The configuration of a causal language model.

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


def load_model(ref: ModelRef, dtype: str, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model of `ref`, in evaluation mode.

    The tensors of the kept blocks are renumbered as they are named on disk; transformers then applies its own
    conversion from disk to memory. `layer_idx`, and with it the KV cache, comes out right because the model is built
    with its final number of blocks.

    Raises:
        BadInputError: the files are damaged or lack a tensor of the model, or the blocks cannot be cut out.
    """
    directory = model_directory(ref)
    config = cut_config(load_config(directory), ref.kept_blocks)
    files = open_tensor_files(directory)
    state = dict(files.read(renumbered(files.shapes, ref.kept_blocks, ref.num_blocks)))
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=DTYPES[dtype],
            ignore_mismatched_sizes=True,  # They are refused below, by name.
            output_loading_info=True,
        )
    except RuntimeError as error:
        if "conversion" not in str(error):
            raise
        raise unjoinable_experts(directory) from None
    _check_complete(directory, report, ref.kept_blocks)
    set_generation_config(model, directory)
    return model.to(device).eval()


def set_generation_config(model: PreTrainedModel, directory: Path) -> None:
    """Give `model` the generation settings that lie beside its weights, where there are any."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return
    try:
        model.generation_config = type(model.generation_config).from_pretrained(directory)
    except Exception as error:  # of a class that checks its own numbers
        raise BadInputError(f"model.path: {file} cannot be read ({brief(error)}); mend or remove it") from None


def _check_complete(directory: Path, report: Mapping[str, Any], kept_blocks: tuple[int, ...]) -> None:
    """Refuse what transformers would fill with random numbers; a tied head is not among it."""
    refuse_missing(directory, report["missing_keys"], kept_blocks)
    refuse_mismatched(directory, report["mismatched_keys"], kept_blocks)


def unjoinable_experts(place: str | Path) -> BadInputError:
    """The error for a block whose experts are not complete or not alike."""
    return BadInputError(
        f"model.path: {place} lacks weights of experts, or has them in different shapes: transformers cannot "
        "join the experts of a block; every weight must be in the files"
    )


Mismatch = tuple[str, Sequence[int], Sequence[int]]
"""A tensor's name in a view, its shape in the files, its shape in the model."""


def refuse_mismatched(place: str | Path, mismatched: Iterable[Mismatch], kept_blocks: tuple[int, ...]) -> None:
    """Raises `BadInputError` where there are any."""
    if found := sorted(mismatched):
        name, stored, wanted = found[0]
        raise BadInputError(
            f"model.path: {len(found)} tensors of {place} have another shape than its config.json asks for, "
            f"such as {_dense_name(name, kept_blocks)}, which has {tuple(stored)} instead of {tuple(wanted)}"
        )


def refuse_missing(place: str | Path, names: Iterable[str], kept_blocks: tuple[int, ...]) -> None:
    """Raises `BadInputError` where there are any, `names` being those of a view."""
    if missing := sorted(_dense_name(name, kept_blocks) for name in names):
        raise BadInputError(
            f"model.path: {place} lacks {len(missing)} tensors of the model, such as {', '.join(missing[:3])}; "
            "every weight must be in the files"
        )


def _dense_name(name: str, kept_blocks: tuple[int, ...]) -> str:
    """A tensor's name in a view, with the block's index in the files."""
    match = BLOCK_NAME.match(name)
    if match is None or int(match["block"]) >= len(kept_blocks):
        return name
    return f"{match['prefix']}.{kept_blocks[int(match['block'])]}.{match['rest']}"


def empty_model(config: PretrainedConfig, dtype: str = "float32") -> PreTrainedModel:
    """A model without weights: parameters on the meta device, buffers real, since rotary frequencies are not stored."""
    with local_torch_dtype(DTYPES[dtype]), init_empty_weights(include_buffers=False):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.tie_weights()  # what goes to the meta device one parameter at a time comes apart
    return model
