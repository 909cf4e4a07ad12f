"""Packed documents that do not attend to one another: by position ids alone, or by a mask, whichever a family obeys."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.head import final_hidden
from shortened_llm.models.shards import device_of
from shortened_llm.models.toy import build_toy

Isolation = Literal["positions", "mask", "masks"]
"""positions: position ids that begin anew; mask: a causal block-diagonal mask too; masks: one for each kind of layer.
"""
FIELD = "retraining.isolate_documents"
TOY_LENGTHS = (11, 13)
"""Tokens of the toy's documents, beyond its windows."""
TOLERANCE = 1e-4
"""Largest difference of a toy's hidden states in fp32, relative to the largest of them."""
LEAK = 1e-3
"""Relative change of hidden states that no rounding explains, when another document changes."""


def document_inputs(
    position_ids: torch.Tensor, isolation: Isolation, config: PretrainedConfig, dtype: torch.dtype
) -> Mapping[str, object]:
    """What a model is given beside its tokens, so that their documents stay apart.

    Args:
        position_ids: [batch, seq], from 0 at the start of each document.
        dtype: compute type of the model.
    """
    if isolation == "positions":
        return {"position_ids": position_ids}
    document = (position_ids == 0).cumsum(dim=1)
    distance = torch.arange(position_ids.shape[1], device=position_ids.device)
    distance = distance[:, None] - distance[None, :]
    seen = (document[:, :, None] == document[:, None, :]) & (distance >= 0)
    full = _additive(seen, dtype)
    if isolation == "mask":
        return {"position_ids": position_ids, "attention_mask": full}
    window = getattr(config, "sliding_window", None)
    masks = {"full_attention": full}
    if window is not None:
        masks["sliding_attention"] = _additive(seen & (distance < window), dtype)
    return {"position_ids": position_ids, "attention_mask": masks}


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[batch, seq, seq] as a mask that is added to attention scores, [batch, 1, seq, seq]."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def choose_isolation(config: PretrainedConfig) -> Isolation:
    """The way that keeps documents apart in a model of this configuration, found on a toy of it.

    It is right where each packed document has the hidden states that it has alone.

    Raises:
        BadInputError: none does, as where a recurrent state runs on.
    """
    toy = build_toy(config)
    ways: tuple[Isolation, ...] = ("positions", "mask", "masks")
    for way in ways:
        if _keeps_apart(toy, way):
            return way
    raise _leaks(config)


@torch.no_grad()
def check_isolation(model: PreTrainedModel, hidden_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Check, on the weights themselves, that a document does not depend on the one before. A collective where the model
    is sharded.

    Args:
        hidden_of: from tokens and position ids, [1, seq], to final hidden states, [1, seq, hidden].

    Raises:
        BadInputError: it does.
    """
    (first, second), device = TOY_LENGTHS, device_of(model)
    position_ids = torch.cat([torch.arange(first), torch.arange(second)])[None].to(device)
    tokens = torch.arange(first + second, device=device)[None] % model.config.vocab_size
    changed = tokens.clone()
    changed[:, :first] = tokens[:, :first].flip(1)
    before, after = (hidden_of(one, position_ids)[:, first:].float() for one in (tokens, changed))
    if (before - after).norm() > LEAK * before.norm():
        raise _leaks(model.config)


def _leaks(config: PretrainedConfig) -> BadInputError:
    return BadInputError(
        f"{FIELD}: is true, but documents of a sequence cannot be kept apart in {config.model_type} models: what they "
        "compute of one depends on those before it; set false"
    )


@torch.no_grad()
def _keeps_apart(toy: PreTrainedModel, isolation: Isolation) -> bool:
    tokens = torch.randint(toy.config.vocab_size, (1, sum(TOY_LENGTHS)), generator=torch.Generator().manual_seed(0))
    documents = tokens.split(TOY_LENGTHS, dim=1)
    position_ids = torch.cat([torch.arange(length) for length in TOY_LENGTHS])[None]
    try:
        packed = final_hidden(toy, tokens, document_inputs(position_ids, isolation, toy.config, torch.float32))
    except Exception:  # whatever a family makes of arguments that it does not know
        return False
    alone = torch.cat([final_hidden(toy, document) for document in documents], dim=1)
    return bool((packed - alone).abs().max() <= TOLERANCE * alone.abs().max())
