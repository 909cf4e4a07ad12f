"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: put into a model, merged, and saved on their own."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.shards import plain_name, whole_tensor
from shortened_llm.records import LoraOptions

ADAPTER = "default"
"""peft's name for an only adapter."""


def linear_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Last parts of the names of the linear layers in the blocks, such as q_proj, sorted."""
    return tuple(
        sorted(
            {
                name.rpartition(".")[2]
                for block in find_blocks(model)
                for name, module in block.named_modules()
                if isinstance(module, (nn.Linear, Conv1D))
            }
        )
    )


def check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the layers that get adapters.

    Raises:
        BadInputError: a target is no linear layer of the blocks.
    """
    known = linear_names(model)
    if unknown := [target for target in targets if target not in known]:
        raise BadInputError(
            f"retraining.lora.target_modules: {unknown[0]!r} is no linear layer of the blocks; they have "
            f"{', '.join(known) or 'none'}"
        )
    if not known:
        raise BadInputError("retraining.methods: lora needs linear layers, but the blocks of this model have none")
    return targets or known


def inject_adapters(model: PreTrainedModel, options: LoraOptions) -> None:
    """Put an adapter beside each target layer, and freeze everything else; raises as `check_targets`."""
    from peft import inject_adapter_in_model  # 5 s, and only adapters need it

    inject_adapter_in_model(adapter_config(check_targets(model, options.target_modules), options), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def adapter_config(targets: tuple[str, ...], options: LoraOptions):  # type: ignore[no-untyped-def]  # of peft
    """peft's form of the options."""
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


def initial_adapter(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """First value of an adapter's weight: A uniform as a linear layer's (peft's default), B zero.

    A pure function of name and seed, so that every number of workers begins alike.
    """
    if f".lora_B.{ADAPTER}." in name:
        return torch.zeros(shape)
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(drawn)
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def merged(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """W + alpha / rank x B A in float32, shape of `weight`. A collective where the adapter is sharded.

    Args:
        layer: peft's layer around the one that `weight` belongs to.
        weight: the whole of it.
    """
    down, up = (whole_tensor(half[ADAPTER].weight).float() for half in (layer.lora_A, layer.lora_B))  # type: ignore[index,union-attr]
    product = layer.scaling[ADAPTER] * (up @ down)  # type: ignore[index]
    return weight.float() + (product.T if layer.fan_in_fan_out else product)


def gathered_adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' weights on the CPU, float32, as peft names them in its files. A collective."""
    return {
        f"base_model.model.{plain_name(name).replace(f'.{ADAPTER}.', '.')}": whole_tensor(tensor).float().cpu()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if is_adapter(name)
    }


def save_adapter(weights: Mapping[str, torch.Tensor], options: LoraOptions, directory: Path) -> None:
    """Write adapters as a directory that `peft.PeftModel.from_pretrained` puts on the model they were trained on."""
    targets = tuple(sorted({name.split(".")[-3] for name in weights}))
    config = adapter_config(targets, options)
    config.inference_mode = True
    config.save_pretrained(directory)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "adapter_model.safetensors")
