"""Find the decoder of a live causal language model, and its blocks."""

from torch import nn
from transformers import PreTrainedModel

from shortened_llm.errors import BadInputError


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The module that turns tokens into final hidden states, which the head reads.

    Raises:
        BadInputError: the model names none apart from itself.
    """
    decoder = model.get_decoder()
    if decoder is model:  # where transformers finds none, as in Llama 4 without its vision tower
        decoder = getattr(model, "model", model)
    if decoder is model:
        raise BadInputError(f"model.path: {type(model).__name__} has no decoder apart from its head")
    return decoder


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order.

    Raises:
        BadInputError: no list of the decoder has as many entries as the config says.
    """
    wanted = model.config.num_hidden_layers
    for module in find_decoder(model).modules():
        # From the outside in: lists inside blocks, such as experts, come later.
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise BadInputError(f"model.path: found no list of {wanted} blocks in {type(model).__name__}")
