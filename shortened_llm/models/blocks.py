"""Find the blocks of a live causal language model."""

from torch import nn
from transformers import PreTrainedModel

from shortened_llm.errors import BadInputError


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order.

    Raises:
        BadInputError: no list of the model has as many entries as the config says.
    """
    wanted = model.config.num_hidden_layers
    for module in model.base_model.modules():
        # From the outside in: lists inside blocks, such as experts, come later.
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise BadInputError(f"model.path: found no list of {wanted} blocks in {type(model).__name__}")
