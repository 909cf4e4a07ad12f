"""What a method changes in a model before it is sharded: which weights are trained."""

import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.methods import METHODS
from shortened_llm.methods.method import ModelParts
from shortened_llm.models.blocks import find_blocks, find_decoder
from shortened_llm.models.build import DTYPES
from shortened_llm.records import Recipe
from shortened_llm.retraining.adapters import inject_adapters
from shortened_llm.retraining.masked_adapters import mask_adapters


def prepare_method(model: PreTrainedModel, recipe: Recipe, dtype: str, *, holds_zeros: bool = False) -> None:
    """Freeze what the method does not train, and add what it does; works on the meta device.

    Trained weights are float32, frozen ones lie in the compute dtype: they need no master copy.

    Args:
        holds_zeros: whether adapters leave weights that are zero as they are.

    Raises:
        BadInputError: adapters would go nowhere.
    """
    row = METHODS[recipe.method]
    if recipe.lora is not None:
        inject_adapters(model, recipe.lora)
        if holds_zeros:
            mask_adapters(model)
    elif row.trained is not None and row.options is not None:
        model.requires_grad_(False)
        parts = ModelParts(
            model=model,
            blocks=list(find_blocks(model)),
            final_norm=_final_norm(model),
            head=model.get_output_embeddings(),
        )
        for module in row.trained(parts, row.options(**recipe.options)):
            module.requires_grad_(True)
    _cast_parameters(model, frozen=DTYPES[dtype])


def freeze(model: PreTrainedModel, dtype: str) -> None:
    """Train nothing, as a teacher needs it: all weights lie in the compute dtype."""
    model.requires_grad_(False)
    _cast_parameters(model, frozen=DTYPES[dtype])


def _cast_parameters(model: PreTrainedModel, *, frozen: torch.dtype) -> None:
    """Trained weights to float32, frozen ones to `frozen`, but for those that files hold in float32 whatever a model
    computes in, so that they are exported as they were; what is tied stays tied."""
    changed: dict[nn.Parameter, nn.Parameter] = {}  # keeps the old ones alive, so that none is taken for another
    exact = model._keep_in_fp32_modules_strict or ()
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in changed:
                is_exact = parameter.requires_grad or any(part in f"{prefix}.{name}" for part in exact)
                cast = parameter.detach().to(torch.float32 if is_exact else frozen)
                changed[parameter] = nn.Parameter(cast, requires_grad=parameter.requires_grad)
            module._parameters[name] = changed[parameter]


def _final_norm(model: PreTrainedModel) -> nn.Module:
    """The module after the blocks; the last child of the decoder that holds weights of one dimension only."""
    norms = [
        module
        for module in find_decoder(model).children()
        if (weights := list(module.parameters())) and all(weight.dim() == 1 for weight in weights)
    ]
    return norms[-1] if norms else nn.Identity()
