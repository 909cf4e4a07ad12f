"""The sequences that blocks are scored on."""

from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from shortened_llm.config import CalibrationConfig
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError

STAGE_VERSION = 1
# A corpus of any size is drawn from its first documents.
MAX_DOCUMENTS = 20_000


def calibration_tokens(
    documents: Documents, config: CalibrationConfig, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Draw sequences from the documents, at most one from each.

    Texts: documents are visited in an order drawn with `config.seed`; each that is long enough gives one sequence, at
    a drawn position. Rows of token ids: used as they are, in their order, each being one sequence.

    Returns:
        Token ids, int64, [num_sequences, sequence_length].

    Raises:
        BadInputError: fewer documents are long enough than sequences are asked for, or a token id is unknown.
    """
    rows = list(islice(documents.rows(), MAX_DOCUMENTS))
    length = config.sequence_length
    if rows and isinstance(rows[0], list):
        sequences = [row for row in rows if isinstance(row, list)][: config.num_sequences]
        if any(len(sequence) != length for sequence in sequences):
            lengths = sorted({len(sequence) for sequence in sequences})
            raise BadInputError(
                f"calibration.sequence_length is {length}, but {config.path!r} holds token rows of lengths {lengths}"
            )
    else:
        sequences = _draw(rows, config, tokenizer)
    if len(sequences) < config.num_sequences:
        raise BadInputError(
            f"calibration.num_sequences is {config.num_sequences}, but only {len(sequences)} of the {len(rows)} "
            f"documents of {config.path!r} have {length} tokens; ask for fewer or shorter sequences"
        )
    tokens = torch.tensor(sequences, dtype=torch.int64)
    if tokens.min() < 0 or tokens.max() >= len(tokenizer):
        raise BadInputError(
            f"calibration.path: {config.path!r} holds token id {int(tokens.max())}; the vocabulary has {len(tokenizer)}"
        )
    return tokens


def _draw(rows: list, config: CalibrationConfig, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    generator = np.random.default_rng(config.seed)
    sequences: list[list[int]] = []
    for index in generator.permutation(len(rows)):
        ids = tokenizer(rows[index])["input_ids"]
        if len(ids) >= config.sequence_length:
            start = int(generator.integers(len(ids) - config.sequence_length + 1))
            sequences.append(ids[start : start + config.sequence_length])
        if len(sequences) == config.num_sequences:
            break
    return sequences
