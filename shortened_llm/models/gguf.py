"""A GGUF file as a plain Hugging Face directory: float32 safetensors, config and tokenizer."""

import copy
from pathlib import Path

from shortened_llm.errors import BadInputError

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


def _check_magic(gguf_file: Path) -> None:
    try:
        with gguf_file.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise BadInputError(f"{gguf_file}: cannot be read: {error.strerror}") from None
    if magic != MAGIC:
        raise BadInputError(f"{gguf_file}: not a GGUF file (it begins with {magic!r}, not {MAGIC!r})")
