"""Documents as tokens, whatever a tokenizer adds by itself."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without end-of-text tokens around it, which some tokenizers add by themselves; a
    beginning-of-text token of another id stays, as the model was trained with it."""
    if not texts:
        return []  # of which tokenizers make an error
    end = tokenizer.eos_token_id
    return [_stripped(ids, end) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def _stripped(ids: list[int], end: int) -> list[int]:
    first, last = 0, len(ids)
    while last > first and ids[last - 1] == end:
        last -= 1
    while first < last and ids[first] == end:
        first += 1
    return ids[first:last]
