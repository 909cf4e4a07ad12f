"""A GGUF file as a plain Hugging Face directory: float32 safetensors, config and tokenizer."""

import copy
from collections.abc import Collection
from pathlib import Path

from transformers import PretrainedConfig

from shortened_llm.errors import BadInputError
from shortened_llm.models.build import empty_model

MAGIC = b"GGUF"


def convert_gguf(gguf_file: Path, directory: Path) -> None:
    """Write the causal language model in `gguf_file` to `directory`, unpacked to float32.

    Any architecture that transformers reads from GGUF. Files are written in place: a caller that needs all or
    nothing converts into a temporary directory and renames it. Needs memory for the float32 weights, once.

    Raises:
        BadInputError: for a file that is missing, not GGUF, damaged, or of an architecture transformers cannot read.
    """
    _check_magic(gguf_file)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    parent, name = str(gguf_file.parent), gguf_file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name, trust_remote_code=False)
        loaded, report = AutoModelForCausalLM.from_pretrained(
            parent,
            gguf_file=name,
            dtype=torch.float32,
            trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True),
            ignore_mismatched_sizes=True,  # They are refused below, by name.
            output_loading_info=True,
        )
    except Exception as error:  # The readers raise whatever a damaged or unknown file leads them to.
        raise BadInputError(f"{gguf_file}: transformers cannot read this GGUF file: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise BadInputError(f"{gguf_file}: lacks {len(missing)} weights, such as {missing[0]}")
    if mismatched := sorted(name for name, *_ in report["mismatched_keys"]):
        raise BadInputError(
            f"{gguf_file}: {len(mismatched)} weights have another shape than transformers derives from the file's "
            f"metadata, such as {mismatched[0]}"
        )

    _refuse_unread(gguf_file, loaded.state_dict().keys())

    # transformers 5.23 keeps a model read from GGUF bound to its quantiser, which refuses to save unpacked weights too.
    config = copy.deepcopy(loaded.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def check_gguf(gguf_file: Path, config: PretrainedConfig) -> None:
    """Check, from headers and small tensors alone, that transformers reads all of a file that counts.

    Args:
        config: what transformers makes of the file.

    Raises:
        BadInputError: it passes over something; see `_refuse_unread`.
    """
    _refuse_unread(gguf_file, empty_model(config).state_dict().keys())


def _refuse_unread(gguf_file: Path, names: Collection[str]) -> None:
    """Refuse what changes the model's numbers and transformers passes over without a word: scaled positions, and biases
    that its class has not.

    Args:
        names: tensors of the model that it made of the file.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    unread = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_") and (tensor.data != 1).any()]
    scaling = {key: field.contents() for key, field in reader.fields.items() if ".rope.scal" in key}
    if not any(key.startswith("gpt-oss.") for key in scaling):
        unread += [key for key, value in scaling.items() if key.endswith((".type", "factor", "linear"))
                   and value not in ("none", 1.0)]  # fmt: skip
    biases = [tensor.name for tensor in reader.tensors if tensor.name.endswith(".bias")]
    biases = [name for name in biases if "_exps." not in name and "exp_probs_b" not in name]  # under other names
    if len(biases) > sum(name.endswith(".bias") for name in names):
        unread.append(biases[0])
    if unread:
        raise BadInputError(
            f"model.path: of {gguf_file} transformers does not read {unread[0]}, so that another model would "
            "come out; give its safetensors files"
        )


def _check_magic(gguf_file: Path) -> None:
    try:
        with gguf_file.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise BadInputError(f"{gguf_file}: cannot be read: {error.strerror}") from None
    if magic != MAGIC:
        raise BadInputError(f"{gguf_file}: not a GGUF file (it begins with {magic!r}, not {MAGIC!r})")
