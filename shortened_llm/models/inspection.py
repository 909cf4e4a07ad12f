"""Whether files hold a model, told from its configuration and the headers of its weight files."""

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from shortened_llm.errors import BadInputError
from shortened_llm.logs import LOGGER
from shortened_llm.models.build import empty_model
from shortened_llm.models.directory import load_config
from shortened_llm.models.families import TEXT_PARTS
from shortened_llm.models.files import TensorHeaders, model_type, open_tensor_files
from shortened_llm.models.sources import check_files, check_ties, find_sources
from shortened_llm.models.view import transformed_headers

SHOWN_NAMES = 3


def check_headers(config: PretrainedConfig, headers: TensorHeaders) -> None:
    """Check the headers against the model that `config` describes, and say in the log what will be left out.

    Raises:
        BadInputError: as `sources.check_files`.
    """
    if (whole_type := model_type(headers.place)) in TEXT_PARTS:
        LOGGER.warning("%s: of the %s model the text part is taken, which knows no images", headers.place, whole_type)
    plain, whole = empty_model(config), transformed_headers(headers, config)
    if left_out := sorted({*check_files(plain, whole), *(headers.of.keys() - whole.of.keys())}):
        some = ", ".join(left_out[:SHOWN_NAMES]) + (", ..." if len(left_out) > SHOWN_NAMES else "")
        LOGGER.warning(
            "%s: %d tensors are left out, since %s does without them (such as blocks for multi-token prediction): %s",
            headers.place, len(left_out), type(plain).__name__, some,
        )  # fmt: skip


def check_directory(directory: Path) -> None:
    """Check that the weight files of a directory on this node hold the model that its config.json describes.

    Raises:
        BadInputError: as `sources.check_files` and `sources.check_ties`.
    """
    config, files = load_config(directory), open_tensor_files(directory)
    check_headers(config, files)
    plain, whole = empty_model(config), transformed_headers(files, config)
    with whole.mapped() as stored:
        check_ties(find_sources(plain, whole), plain, whole, stored)


def check_special_tokens(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that there is an end-of-text token, and that the model has an embedding for each special token.

    Raises:
        BadInputError: naming the token.
    """
    if tokenizer.eos_token_id is None:
        raise BadInputError("model.path: the tokenizer has no end-of-text token")
    rows = len(empty_model(config).get_input_embeddings().weight)
    for name in ("bos_token", "eos_token", "pad_token"):
        token = getattr(tokenizer, f"{name}_id")
        if token is not None and not 0 <= token < rows:
            raise BadInputError(
                f"model.path: the tokenizer's {name} {getattr(tokenizer, name)!r} has id {token}, but the model has "
                f"embeddings for ids from 0 to {rows - 1}; give the tokenizer that it was trained with"
            )
