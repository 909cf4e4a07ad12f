"""Perplexity of a text under a stated protocol (`PerplexitySource`)."""

import math
from collections.abc import Iterable
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.logs import LOGGER
from shortened_llm.models.families import needs_bos
from shortened_llm.models.head import next_token_labels, sequence_nll
from shortened_llm.records import PerplexityScore

STAGE_VERSION = 1
# More than any vocabulary needs on average: a text cut there still has the tokens asked for.
CHARACTERS_PER_TOKEN = 32


def text_segments(documents: Documents, source: PerplexitySource, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Segments of the text: documents joined by a blank line, tokenised without special tokens, remainder dropped.

    bos `first`: one beginning-of-text token at the very start, then segments of `segment_length`; `each`: one more
    token before every segment; `none`: no such token. Rows of token ids are segments as they are, whatever bos says.

    Returns:
        Token ids, [segments, length]; each predicts length - 1 tokens.

    Raises:
        BadInputError: the text is shorter than a segment, or the tokenizer has no beginning-of-text token.
    """
    check_bos(documents, source, tokenizer)
    rows = documents.rows()
    first = next(rows, None)
    if isinstance(first, list):
        return _token_rows([first, *rows], documents, source, tokenizer)
    ids = _token_ids([] if first is None else chain([first], rows), source, tokenizer)
    if source.bos == "first":
        ids = [tokenizer.bos_token_id, *ids]
    if source.max_tokens is not None:
        ids = ids[: source.max_tokens]
    count = len(ids) // source.segment_length
    if count == 0:
        raise BadInputError(
            f"{documents.field_path}: {source.path!r} ({documents.part}) has {len(ids)} tokens, fewer than one segment "
            f"of {source.segment_length}"
        )
    segments = torch.tensor(ids[: count * source.segment_length]).view(count, source.segment_length)
    if source.bos == "each":
        segments = torch.cat([torch.full((count, 1), tokenizer.bos_token_id), segments], dim=1)
    return segments


def check_bos(
    documents: Documents,
    source: PerplexitySource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model_type: str | None = None,
) -> None:
    """Check that the protocol's beginning-of-text mode suits the tokenizer and the model's family.

    Args:
        model_type: the family, where a mode that does not suit it shall be warned of.

    Raises:
        BadInputError: the protocol needs a beginning-of-text token, but the tokenizer has none.
    """
    field = f"{documents.field_path}.bos"
    if source.bos != "none" and tokenizer.bos_token_id is None:
        raise BadInputError(f"{field}: is {source.bos!r}, but the tokenizer has no beginning-of-text token; set none")
    if model_type is not None and source.bos != "each" and needs_bos("auto", model_type):
        # Not refused: it is the protocol of published figures, such as those of the Shortened LLaMA paper.
        LOGGER.warning(
            "%s: is %r, but %s models predict at random without a beginning-of-text token in front of every segment; "
            "set each",
            field, source.bos, model_type,
        )  # fmt: skip


def _token_ids(
    rows: Iterable[str | list[int]], source: PerplexitySource, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Tokens of the joined text; of a long one only its beginning, with room to spare, where that is all we need."""
    texts: list[str] = []
    characters = 0
    for row in rows:
        texts.append(str(row))
        characters += len(texts[-1])
        if source.max_tokens is not None and characters > CHARACTERS_PER_TOKEN * source.max_tokens:
            break
    return list(tokenizer("\n\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"])


def _token_rows(
    rows: list, documents: Documents, source: PerplexitySource, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Rows of token ids as they are, whatever the mode of beginning-of-text tokens."""
    limit = None if source.max_tokens is None else source.max_tokens // source.segment_length
    rows = rows[:limit]
    if any(len(row) != source.segment_length for row in rows):
        raise BadInputError(
            f"{documents.field_path}.segment_length is {source.segment_length}, but the token rows of "
            f"{source.path!r} have other lengths; a row is one segment"
        )
    segments = torch.tensor(rows)
    if segments.min() < 0 or segments.max() >= len(tokenizer):
        raise BadInputError(
            f"{documents.field_path}: {source.path!r} holds token id {int(segments.max())}; the vocabulary has "
            f"{len(tokenizer)}"
        )
    return segments


def protocol(documents: Documents, source: PerplexitySource) -> str:
    """The protocol in words: two numbers may share a column only if their protocols are equal."""
    limit = f", first {source.max_tokens:,} tokens" if source.max_tokens else ""
    return f"@{source.segment_length} bos-{source.bos}, {documents.part}{limit}"


@torch.inference_mode()
def measure_perplexity(
    model: PreTrainedModel,
    segments: torch.Tensor,
    documents: Documents,
    source: PerplexitySource,
    *,
    batch_size: int,
) -> PerplexityScore:
    """exp(mean negative log-likelihood over all predictions of all segments).

    Args:
        segments: from `text_segments`, [segments, length].

    Raises:
        NonFiniteLossError: the loss of a segment is NaN or infinite.
    """
    sums = [
        sequence_nll(model, batch, next_token_labels(batch)) for batch in segments.to(model.device).split(batch_size)
    ]
    total = torch.cat(sums).double().sum().item()
    count = segments.shape[0] * (segments.shape[1] - 1)
    mean = total / count
    if not math.isfinite(mean):
        raise NonFiniteLossError(f"perplexity on {source.label}: mean loss is {mean}")
    return PerplexityScore(
        source=source.label,
        protocol=protocol(documents, source),
        perplexity=math.exp(mean),
        mean_nll=mean,
        num_predictions=count,
    )
