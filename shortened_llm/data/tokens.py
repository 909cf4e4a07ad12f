"""Documents as tokens, whatever a tokenizer adds by itself."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from shortened_llm.errors import BadInputError


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without end-of-text tokens around it, which some tokenizers add by themselves; a
    beginning-of-text token of another id stays, as the model was trained with it."""
    if not texts:
        return []  # of which tokenizers make an error
    end = tokenizer.eos_token_id
    return [_stripped(ids, end) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def check_ids(ids: Iterable[int], vocab_size: int, where: str) -> None:
    """Raises `BadInputError` where the model has no embedding for one of the tokens."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise BadInputError(
                f"{where} holds token id {token}; the model's vocabulary has ids from 0 to {vocab_size - 1}"
            )


def _stripped(ids: list[int], end: int) -> list[int]:
    first, last = 0, len(ids)
    while last > first and ids[last - 1] == end:
        last -= 1
    while first < last and ids[first] == end:
        first += 1
    return ids[first:last]
