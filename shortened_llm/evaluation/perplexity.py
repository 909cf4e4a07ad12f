"""Perplexity of a text under a stated protocol (`PerplexitySource`)."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import PerplexitySource
from shortened_llm.data.rows import Tally, left_out
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.logs import LOGGER
from shortened_llm.models.families import needs_bos
from shortened_llm.models.head import next_token_labels, token_nll
from shortened_llm.records import PerplexityScore

STAGE_VERSION = 5
# More than any vocabulary needs on average: a text cut there still has the tokens asked for.
CHARACTERS_PER_TOKEN = 32
SEPARATOR = "\n\n"
PART_TOKENS = 32_768
"""Size of a part of a text: seconds of a large model on a GPU, half a minute of a small one on CPUs."""
LARGEST_EXPONENT = math.log(sys.float_info.max)
STORED_DECIMALS = 4
"""Decimals of a document's sum, in nats: far below any difference that matters, and half the digits of a float."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """A text as a model reads it."""

    tokens: torch.Tensor
    """Token ids, [segments, length]; each segment predicts length - 1 tokens."""
    documents: torch.Tensor
    """Which document each token lies in, [segments, length], counted from 0 in the order of the text."""
    first_new: tuple[int, ...]
    """The first token that each segment predicts: 1, or further on where windows overlap."""
    notes: tuple[str, ...] = ()
    """How the text differs from its source, such as rows that could not be used."""

    @property
    def predicted(self) -> torch.Tensor:
        """Whether each token but the first is predicted, [segments, length - 1]."""
        return torch.arange(1, self.tokens.shape[1]) >= torch.tensor(self.first_new)[:, None]


def text_segments(documents: Documents, source: PerplexitySource, tokenizer: PreTrainedTokenizerBase) -> Segments:
    """Segments of the text: documents joined by a blank line, tokenised without special tokens, remainder dropped.

    bos `first`: one beginning-of-text token at the very start, then segments of `segment_length`; `each`: one more
    token before every segment; `none`: no such token. With a `stride`, segments are windows that overlap, each
    predicting the tokens that are new to it. Rows of token ids are segments as they are, whatever bos says.

    A token lies in the document that holds its first character, the blank line behind a document being part of it.
    Rows of token ids, and tokenizers in Python that do not tell where a token lies, make each segment a document.

    Raises:
        BadInputError: the text is shorter than a segment, or the tokenizer has no beginning-of-text token.
    """
    check_bos(documents, source, tokenizer)
    tally = Tally(documents)
    rows = documents.usable(tally)
    first = next(rows, None)
    rows = chain([] if first is None else [first], rows)
    holds_ids = isinstance(first, list)
    if holds_ids:
        tokens = _token_rows(list(rows), documents, source, tokenizer)
    else:
        tokens, owners = _windows(rows, documents, source, tokenizer)
    if holds_ids or not tokenizer.is_fast:
        owners = torch.arange(len(tokens))[:, None].expand(tokens.shape)
    later = 1 if holds_ids or source.stride is None else source.segment_length - source.stride
    return Segments(
        tokens=tokens,
        documents=owners,
        first_new=(1, *[later] * (len(tokens) - 1)),
        notes=(left_out(tally.num_rows, tally.num_bad, tally.first_bad),) if tally.num_bad else (),
    )


def _windows(
    rows: Iterable[str | list[int]], documents: Documents, source: PerplexitySource, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Token ids and the document of each, [2, segments, length]."""
    text = _token_ids(rows, source, tokenizer)
    # No first token of a segment is predicted, so the document of a beginning-of-text token counts nowhere.
    bos = torch.tensor([[tokenizer.bos_token_id or 0], [0]])
    if source.bos == "first":
        text = torch.cat([bos, text], dim=1)
    text = text[:, : source.max_tokens]
    if text.shape[1] < source.segment_length:
        raise BadInputError(
            f"{documents.field_path}: {source.path!r} ({documents.part}) has {text.shape[1]} tokens, fewer than one "
            f"segment of {source.segment_length}"
        )
    windows = text.unfold(1, source.segment_length, source.stride or source.segment_length)
    if source.bos == "each":
        windows = torch.cat([bos[:, None].expand(-1, windows.shape[1], -1), windows], dim=2)
    return windows


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
) -> torch.Tensor:
    """Tokens of the joined text; of a long one only its beginning, with room to spare, where that is all we need.

    Returns:
        Token ids, and the document of each, [2, tokens]; 0 where the tokenizer does not tell.
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
    ids = np.array(encoded["input_ids"], dtype=np.int64)
    token_starts = [start for start, _ in encoded["offset_mapping"]] if tokenizer.is_fast else np.zeros_like(ids)
    document_starts = np.cumsum([0] + [len(text) + len(SEPARATOR) for text in texts[:-1]])
    places = np.searchsorted(document_starts, token_starts, side="right") - 1
    return torch.from_numpy(np.stack([ids, places]))


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
    lowest, highest = int(segments.min()), int(segments.max())
    if lowest < 0 or highest >= len(tokenizer):
        raise BadInputError(
            f"{documents.field_path}: {source.path!r} holds token ids {lowest} to {highest}; the tokenizer has 0 to "
            f"{len(tokenizer) - 1}"
        )
    return segments


def protocol(documents: Documents, source: PerplexitySource) -> str:
    """The protocol in words: two numbers may share a column only if their protocols are equal."""
    limit = f", first {source.max_tokens:,} tokens" if source.max_tokens else ""
    stride = f" stride {source.stride}" if source.stride else ""
    of_hub = f" of {source.split} at {documents.commit[:8]}" if documents.commit else ""
    return f"@{source.segment_length} bos-{source.bos}{stride}, {documents.part}{of_hub}{limit}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextLosses:
    """The losses of some segments of a text, in their order."""

    nll: np.ndarray
    """Loss of each prediction in nats, float32 [predictions]."""
    documents: np.ndarray
    """Which document each prediction lies in, [predictions]."""
    notes: tuple[str, ...] = ()
    """How the text differs from its source; see `records.PerplexityScore`."""


def part_bounds(num_segments: int, segment_length: int) -> list[tuple[int, int]]:
    """First segment and end of each part in which a text is measured, whoever measures them."""
    size = max(1, PART_TOKENS // segment_length)
    return [(start, min(start + size, num_segments)) for start in range(0, num_segments, size)]


@torch.inference_mode()
def measure_losses(
    model: PreTrainedModel, segments: Segments, bounds: tuple[int, int], *, batch_size: int
) -> TextLosses:
    """The losses of all predictions of one part of `part_bounds`, `batch_size` segments per forward pass."""
    part = slice(*bounds)
    tokens = segments.tokens[part]
    predicted = segments.predicted[part]
    batches = tokens.to(model.device).split(batch_size)
    nll = torch.cat([token_nll(model, batch, next_token_labels(batch))[:, :-1] for batch in batches]).cpu()
    return TextLosses(
        nll=nll[predicted].numpy(),
        documents=segments.documents[part, 1:][predicted].numpy(),
        notes=segments.notes,
    )


def perplexity_score(parts: Sequence[TextLosses], documents: Documents, source: PerplexitySource) -> PerplexityScore:
    """exp(mean negative log-likelihood over all predictions of all parts of a text), and its sums by document.

    Raises:
        NonFiniteLossError: the mean loss is NaN or infinite.
    """
    nll = np.concatenate([part.nll for part in parts]).astype(np.float64)
    owners = np.concatenate([part.documents for part in parts])
    mean = float(nll.sum() / nll.size)
    if not math.isfinite(mean):
        raise NonFiniteLossError(f"perplexity on {source.label}: mean loss is {mean}")
    predictions = np.bincount(owners)
    sums = np.bincount(owners, weights=nll)
    return PerplexityScore(
        unit="",  # set by `store_score`
        source=source.label,
        protocol=protocol(documents, source),
        perplexity=math.exp(mean) if mean < LARGEST_EXPONENT else math.inf,
        mean_nll=mean,
        num_predictions=nll.size,
        document_nll=tuple(round(value, STORED_DECIMALS) for value in sums[predictions > 0].tolist()),
        document_predictions=tuple(predictions[predictions > 0].tolist()),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
