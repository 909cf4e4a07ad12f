"""How often a trial sees its corpus: known exactly once it is packed, and from below when a job is submitted."""

import math
from collections.abc import Sequence
from itertools import islice

from transformers import PreTrainedTokenizerBase

from shortened_llm.config import RetrainingConfig
from shortened_llm.data.rows import COMPRESSIONS
from shortened_llm.data.sources import Documents
from shortened_llm.data.tokens import encode_documents
from shortened_llm.records import TokenMixture
from shortened_llm.storage.urls import file_size

MOST_EPOCHS = 4
"""More passes over a corpus teach little (arXiv 2305.16264)."""
SAMPLED_DOCUMENTS = 1000
SAMPLED_CHARACTERS = 200_000
PACKED = (*COMPRESSIONS, ".parquet")


def many_epochs(retraining: RetrainingConfig, corpus: TokenMixture) -> str | None:
    """In words, how often the largest budget passes a corpus, where that is too often; None where it is not."""
    return _told(retraining, corpus.num_sequences * retraining.sequence_length, at_most="")


def expected_epochs(
    retraining: RetrainingConfig, corpus: Sequence[Documents], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """A warning before the corpus is packed, from samples of its sources; also None where packed files hide how long
    they are."""
    tokens = retraining.corpus_tokens or math.inf
    tokens = min(tokens, sum(_most_tokens(documents, tokenizer) for documents in corpus))
    return None if tokens == math.inf else _told(retraining, int(tokens), at_most="at most ")


def _told(retraining: RetrainingConfig, tokens: int, *, at_most: str) -> str | None:
    budget = max(retraining.budgets)
    epochs = budget / max(1, tokens)
    if epochs <= MOST_EPOCHS:
        return None
    return (
        f"The corpus holds {at_most}{tokens:,} tokens: a budget of {budget:,} passes it {epochs:,.0f} times"
        f"{' or more' if at_most else ''}, and more than {MOST_EPOCHS} teach little."
    )


def _most_tokens(documents: Documents, tokenizer: PreTrainedTokenizerBase) -> float:
    """A bound on a source's tokens, since a file has at most its bytes of text; infinite where it is packed."""
    rows = documents.usable()
    sample: list[list[int] | str] = []
    characters = 0
    for row in islice(rows, SAMPLED_DOCUMENTS):
        sample.append(row)
        characters += len(row)
        if characters >= SAMPLED_CHARACTERS:
            break
    texts = [row for row in sample if isinstance(row, str)]
    tokens = sum(map(len, encode_documents(tokenizer, texts))) + len(sample)  # an end-of-text token behind each
    tokens += sum(len(row) for row in sample if isinstance(row, list))
    if next(rows, None) is None:
        return tokens
    if not documents.files or any(file.lower().endswith(PACKED) for file in documents.files):
        return math.inf
    size = sum(file_size(file) or 0 for file in documents.files)
    return size * tokens / max(1, sum(len(text.encode()) for text in texts))
