"""Random weights, as an architecture's own code draws them before any training."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import empty_model


def fresh_weights(model: PreTrainedModel, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter's name and whole float32 value, one block of a model of `empty_model` in memory at a time; and
    those of the buffers in files that the architecture's code sets anew, such as biases that choose experts.

    The values follow from the shape of the model and the seed alone, so that all processes of a run draw alike. Tied
    parameters come once for each of their names.

    Raises:
        BadInputError: the architecture's code leaves a parameter as it is.
    """
    blocks = set(find_blocks(model))
    inside = {module for block in blocks for module in block.modules()}
    named = list(model.named_modules())
    parts = [(name, module) for name, module in named if module in blocks or (module not in inside and _own(module))]
    for index, (name, part) in enumerate(parts):
        part.to_empty(device="cpu", recurse=part in blocks)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed((seed * len(parts) + index) % 2**63)
            buffers = _stored_buffers(part, recurse=part in blocks)
            for tensor in (*part.parameters(recurse=part in blocks), *buffers.values()):
                tensor.fill_(torch.nan)
            _draw(model, part)
        for own, parameter in part.named_parameters(recurse=part in blocks):
            if parameter.isnan().any():
                raise BadInputError(
                    "retraining: scratch draws random weights, but the code of "
                    f"{model.config.model_type} models draws none for {name}.{own}; drop scratch"
                )
            yield f"{name}.{own}", parameter.detach()
        yield from ((f"{name}.{own}", buffer) for own, buffer in buffers.items() if not buffer.isnan().any())
        part.to_empty(device="meta", recurse=part in blocks)


def check_drawn(config: PretrainedConfig) -> None:
    """Check that the architecture's code draws every parameter; raises as `fresh_weights`."""
    for _ in fresh_weights(empty_model(config), 0):
        pass


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _stored_buffers(part: nn.Module, *, recurse: bool) -> dict[str, torch.Tensor]:
    """Buffers of real numbers that files hold, by name."""
    stored = part.state_dict(keep_vars=True)
    named = part.named_buffers(recurse=recurse)
    return {name: buffer for name, buffer in named if name in stored and buffer.is_floating_point()}


def _draw(model: PreTrainedModel, part: nn.Module) -> None:
    """Children come before their parents, which may draw anew what ends a residual branch."""
    for module in reversed(list(part.modules())):
        if not any(parameter.is_meta for parameter in module.parameters()):
            model._init_weights(module)
