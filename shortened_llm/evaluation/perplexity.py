"""Perplexity of a text under a stated protocol (`PerplexitySource`)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.logs import LOGGER
from shortened_llm.models.families import needs_bos
from shortened_llm.models.head import next_token_labels, token_nll
from shortened_llm.records import PerplexityScore

STAGE_VERSION = 2
# More than any vocabulary needs on average: a text cut there still has the tokens asked for.
CHARACTERS_PER_TOKEN = 32
SEPARATOR = "\n\n"
STORED_DECIMALS = 4
"""Of a document's sum, in nats: far below any difference that matters, and half the digits of a float."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """A text as a model reads it."""

    tokens: torch.Tensor
    """Token ids, [segments, length]; each segment predicts length - 1 tokens."""
    documents: torch.Tensor
    """Which document each token lies in, [segments, length], counted from 0 in the order of the text."""


def text_segments(documents: Documents, source: PerplexitySource, tokenizer: PreTrainedTokenizerBase) -> Segments:
    """Segments of the text: documents joined by a blank line, tokenised without special tokens, remainder dropped.

    bos `first`: one beginning-of-text token at the very start, then segments of `segment_length`; `each`: one more
    token before every segment; `none`: no such token. Rows of token ids are segments as they are, whatever bos says.

    A token lies in the document that holds its first character, the blank line behind a document being part of it.
    Rows of token ids, and tokenizers in Python that do not tell where a token lies, make each segment a document.

    Raises:
        BadInputError: the text is shorter than a segment, or the tokenizer has no beginning-of-text token.
    """
    check_bos(documents, source, tokenizer)
    rows = documents.rows()
    first = next(rows, None)
    if isinstance(first, list):
        return _each_its_document(_token_rows([first, *rows], documents, source, tokenizer))
    ids, places = _token_ids([] if first is None else chain([first], rows), source, tokenizer)
    if source.bos == "first":
        # No first token of a segment is predicted, so its document counts nowhere.
        ids = [tokenizer.bos_token_id, *ids]
        places = None if places is None else np.append(0, places)
    if source.max_tokens is not None:
        ids = ids[: source.max_tokens]
    count = len(ids) // source.segment_length
    if count == 0:
        raise BadInputError(
            f"{documents.field_path}: {source.path!r} ({documents.part}) has {len(ids)} tokens, fewer than one segment "
            f"of {source.segment_length}"
        )
    shape = (count, source.segment_length)
    segments = torch.tensor(ids[: math.prod(shape)]).view(shape)
    owners = None if places is None else torch.from_numpy(places[: math.prod(shape)]).view(shape)
    if source.bos == "each":
        segments = torch.cat([torch.full((count, 1), tokenizer.bos_token_id), segments], dim=1)
        owners = None if owners is None else torch.cat([owners[:, :1], owners], dim=1)
    return _each_its_document(segments) if owners is None else Segments(tokens=segments, documents=owners)


def _each_its_document(tokens: torch.Tensor) -> Segments:
    return Segments(tokens=tokens, documents=torch.arange(len(tokens))[:, None].expand(tokens.shape))


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
) -> tuple[list[int], np.ndarray | None]:
    """Tokens of the joined text; of a long one only its beginning, with room to spare, where that is all we need.

    Returns:
        Token ids, and the document of each, [tokens]; None where the tokenizer does not tell.
    """
    texts: list[str] = []
    characters = 0
    for row in rows:
        texts.append(str(row))
        characters += len(texts[-1])
        if source.max_tokens is not None and characters > CHARACTERS_PER_TOKEN * source.max_tokens:
            break
    encoded = tokenizer(
        SEPARATOR.join(texts), add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast
    )
    if not tokenizer.is_fast:
        return list(encoded["input_ids"]), None
    document_starts = np.cumsum([0] + [len(text) + len(SEPARATOR) for text in texts[:-1]])
    token_starts = np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
    places = np.searchsorted(document_starts, token_starts, side="right") - 1
    return list(encoded["input_ids"]), places


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
    segments: Segments,
    documents: Documents,
    source: PerplexitySource,
    *,
    batch_size: int,
) -> PerplexityScore:
    """exp(mean negative log-likelihood over all predictions of all segments), and its sums by document.

    Args:
        segments: from `text_segments`.

    Raises:
        NonFiniteLossError: the loss of a segment is NaN or infinite.
    """
    batches = segments.tokens.to(model.device).split(batch_size)
    nll = torch.cat([token_nll(model, batch, next_token_labels(batch))[:, :-1] for batch in batches]).cpu().double()
    mean = (nll.sum() / nll.numel()).item()
    if not math.isfinite(mean):
        raise NonFiniteLossError(f"perplexity on {source.label}: mean loss is {mean}")
    owners = segments.documents[:, 1:].flatten()
    predictions = torch.bincount(owners)
    sums = torch.bincount(owners, weights=nll.flatten())
    return PerplexityScore(
        source=source.label,
        protocol=protocol(documents, source),
        perplexity=math.exp(mean),
        mean_nll=mean,
        num_predictions=nll.numel(),
        document_nll=tuple(round(value, STORED_DECIMALS) for value in sums[predictions > 0].tolist()),
        document_predictions=tuple(predictions[predictions > 0].tolist()),
    )
