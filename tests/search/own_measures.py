"""Measures of one's own, as users write them."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def mean_magnitude(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Mean absolute weight of the first block's output projection, which training moves."""
    weight = next(weight for name, weight in model.named_parameters() if "down_proj" in name)
    return float(weight.detach().abs().mean())
