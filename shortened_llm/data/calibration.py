"""The sequences that blocks are scored on."""

import importlib.metadata
from itertools import chain, islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from shortened_llm.config import CalibrationConfig
from shortened_llm.data.rows import Tally
from shortened_llm.data.sources import Documents
from shortened_llm.data.tokens import check_ids, encode_documents
from shortened_llm.errors import BadInputError

STAGE_VERSION = 2
# A corpus of any size is drawn from its first documents.
MAX_DOCUMENTS = 20_000


def calibration_identity(documents: Documents | None, config: CalibrationConfig) -> dict[str, object]:
    """All that the sequences depend on but their number and the tokenizer, whose files are part of the model."""
    return {
        "stage": STAGE_VERSION,
        "documents": documents.identity if documents else None,
        "sequence_length": config.sequence_length,
        "seed": config.seed,
        "bos": config.bos,
        "tokenizers": importlib.metadata.version("tokenizers"),
    }


def calibration_tokens(
    documents: Documents,
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    bos: bool,
) -> torch.Tensor:
    """Draw sequences from the documents, at most one from each.

    Texts: documents are visited in an order drawn with `config.seed`; each that is long enough gives one sequence, at a
    drawn position. Rows of token ids: used as they are, in their order, each being one sequence.

    Args:
        vocab_size: rows of the model's embedding table. Tokenizers can know fewer tokens, and more.
        bos: put the beginning-of-text token in place of the first token of every sequence drawn from texts.

    Returns:
        Token ids, int64, [sequences, sequence_length].

    Raises:
        BadInputError: there are fewer sequences than `config.num_sequences`, a row has another length, a token id is
            not in the embedding table, or the tokenizer has no beginning-of-text token where one is needed.
    """
    tally = Tally(documents)
    rows = list(islice(documents.usable(tally), MAX_DOCUMENTS))
    tally.check()
    if not rows:
        raise BadInputError(
            f"{documents.field_path}.path: {config.path!r} ({documents.part}) holds no documents; give at least "
            f"{config.num_sequences}"
        )
    if isinstance(rows[0], list):
        sequences = _take(rows, config, documents.field_path)
    else:
        sequences = _draw(rows, config, tokenizer, documents.field_path)
        if bos:
            first = _bos_token_id(config, tokenizer, documents.field_path)
            sequences = [[first, *sequence[1:]] for sequence in sequences]
    check_ids(chain.from_iterable(sequences), vocab_size, f"{documents.field_path}.path: {config.path!r}")
    return torch.tensor(sequences, dtype=torch.int64)


def _take(rows: list, config: CalibrationConfig, field_path: str) -> list[list[int]]:
    """Rows of token ids as they are."""
    sequences = rows[: config.num_sequences]
    if len(sequences) < config.num_sequences:
        raise BadInputError(
            f"{field_path}.num_sequences is {config.num_sequences}, but {config.path!r} holds {len(rows)} rows of "
            "token ids; ask for fewer sequences"
        )
    lengths = sorted({len(sequence) for sequence in sequences})
    if lengths != [config.sequence_length]:
        raise BadInputError(
            f"{field_path}.sequence_length is {config.sequence_length}, but {config.path!r} holds token rows of "
            f"lengths {lengths}; a row is one sequence"
        )
    return sequences


def _draw(
    rows: list, config: CalibrationConfig, tokenizer: PreTrainedTokenizerBase, field_path: str
) -> list[list[int]]:
    """Parts of texts. What is drawn for a document does not depend on how many sequences are wanted."""
    generator = np.random.default_rng(config.seed)
    sequences: list[list[int]] = []
    for index in generator.permutation(len(rows)):
        (ids,) = encode_documents(tokenizer, [rows[index]])
        if len(ids) >= config.sequence_length:
            start = int(generator.integers(len(ids) - config.sequence_length + 1))
            sequences.append(ids[start : start + config.sequence_length])
        if len(sequences) == config.num_sequences:
            break
    if len(sequences) < config.num_sequences:
        raise BadInputError(
            f"{field_path}.num_sequences is {config.num_sequences}, but only {len(sequences)} of the {len(rows)} "
            f"documents of {config.path!r} have {config.sequence_length} tokens; ask for fewer or shorter sequences"
        )
    return sequences


def _bos_token_id(config: CalibrationConfig, tokenizer: PreTrainedTokenizerBase, field_path: str) -> int:
    if tokenizer.bos_token_id is None:
        raise BadInputError(
            f"{field_path}.bos: is {config.bos!r}, which asks for a beginning-of-text token before every sequence, but "
            "the tokenizer has none; set none"
        )
    return int(tokenizer.bos_token_id)
