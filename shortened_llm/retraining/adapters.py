"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: put into a model, merged, and saved on their own."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shortened_llm.errors import BadInputError, brief
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.families import KERNEL_LINEARS, KERNEL_MODULES, LINEAR_SUBCLASSES, ROUTERS
from shortened_llm.models.shards import device_of, plain_name, whole_tensor
from shortened_llm.records import LoraOptions

ADAPTER = "default"
"""peft's name for an only adapter."""
TARGETS_FIELD = "retraining.lora.target_modules"
CHECKED_TOKENS = 8


class AdapterError(RuntimeError):
    """Adapters are not what was asked for."""


def linear_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Full names of the linear layers in the blocks that may get an adapter, in model order.

    Left out are routers, linear layers that fused kernels read without calling them, and layers of classes that compute
    something else. Experts that lie stacked in one parameter are no linear layers.
    """
    blocks = find_blocks(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    modules = dict(blocks.named_modules())
    names = []
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        is_linear = type(module) in (nn.Linear, Conv1D) or type(module).__name__ in LINEAR_SUBCLASSES
        in_kernel = last in KERNEL_LINEARS and any(word in type(modules[parent]).__name__ for word in KERNEL_MODULES)
        if is_linear and not in_kernel and not set(name.split(".")) & set(ROUTERS):
            names.append(f"{prefix}.{name}")
    return tuple(names)


def adapter_targets(model: PreTrainedModel, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Full names of the linear layers that get an adapter.

    Args:
        model: with or without weights.
        asked: last parts of names, such as q_proj; all that may have an adapter unless given.

    Raises:
        BadInputError: a name is of no such layer, or peft would put its adapters elsewhere.
    """
    every = linear_names(model)
    known = sorted({_last(name) for name in every})
    readable = [last for last in known if _peft_keeps(model, [name for name in every if _last(name) == last])]
    for name in asked:
        if name not in readable:
            why = (
                "peft takes it for a part of stacked experts"
                if name in known
                else "it is no linear layer of the blocks"
            )
            raise BadInputError(
                f"{TARGETS_FIELD}: {name!r} cannot have an adapter, since {why}; allowed are "
                f"{', '.join(readable) or 'none'}"
            )
    if not readable:
        raise BadInputError("retraining.methods: lora needs linear layers, but the blocks of this model have none")
    return tuple(name for name in every if _last(name) in (asked or readable))


def adapted_share(model: PreTrainedModel, targets: Iterable[str]) -> float:
    """Share of the blocks' weights that have an adapter beside them, 0 to 1."""
    beside = sum(model.get_submodule(name).weight.numel() for name in targets)
    return beside / sum(weight.numel() for weight in find_blocks(model).parameters())


def inject_adapters(model: PreTrainedModel, options: LoraOptions) -> None:
    """Put an adapter beside each target layer, and freeze everything else.

    Raises:
        BadInputError: as `adapter_targets`, or peft makes other adapters than those.
    """
    from peft import inject_adapter_in_model  # 5 s, and only adapters need it

    targets = adapter_targets(model, options.target_modules)
    try:
        inject_adapter_in_model(adapter_config(targets, options), model)
    except ValueError as error:
        raise BadInputError(
            f"retraining.methods: lora: peft cannot put adapters into {model.config.model_type} models ({brief(error)})"
        ) from None
    halves = {half for name in targets for half in (f"{name}.lora_A.{ADAPTER}", f"{name}.lora_B.{ADAPTER}")}
    made = {name.rpartition(".")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    if made != halves:
        first = sorted(made ^ halves)[0]
        raise BadInputError(
            f"retraining.methods: lora: peft reads the layers of {model.config.model_type} models in its own way (such "
            f"as {first}); name other layers in {TARGETS_FIELD}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def adapter_config(targets: tuple[str, ...], options: LoraOptions, base: str | None = None):  # type: ignore[no-untyped-def]  # of peft
    """peft's form of the options.

    Args:
        targets: full names of the layers.
        base: the model that the adapters belong to, as people may find it.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _peft_keeps(model: PreTrainedModel, names: list[str]) -> bool:
    """Whether peft leaves these targets as they are. In some mixtures of experts it takes the names that experts had in
    transformers 4 for the stacked experts of transformers 5, wherever a layer of such a name lies."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    options = LoraOptions(rank=1, alpha=1.0, dropout=0.0, target_modules=())
    config = adapter_config(tuple(names), options)
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # some of the parts that it would fuse are missing
        return False
    return set(config.target_modules) == set(names) and not config.target_parameters


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """peft's layers around those that have an adapter, by the plain name of the layer inside."""
    return {plain_name(name): layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


@torch.no_grad()
def check_neutral(model: PreTrainedModel) -> None:
    """Check that adapters which have not been trained change no logit; without any, nothing is done. A collective.

    Raises:
        AdapterError: they do.
    """
    layers = adapted_layers(model).values()
    if not layers:
        return
    tokens = torch.arange(CHECKED_TOKENS, device=device_of(model))[None] % model.config.vocab_size
    logits = []
    for enabled in (False, True):
        for layer in layers:
            layer.enable_adapters(enabled)  # type: ignore[operator]
        logits.append(model(input_ids=tokens, use_cache=False).logits)
    if not torch.equal(*logits):
        raise AdapterError("new adapters change the model's logits before they are trained")


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


def merged(layer: nn.Module, weight: torch.Tensor, *, holds_zeros: bool) -> torch.Tensor:
    """W + alpha / rank x B A in float32, shape of `weight`. A collective where the adapter is sharded.

    Args:
        layer: peft's layer around the one that `weight` belongs to.
        weight: the whole of it.
        holds_zeros: whether it stays zero where it is; see `mask_adapters`.
    """
    down, up = (whole_tensor(half[ADAPTER].weight).float() for half in (layer.lora_A, layer.lora_B))  # type: ignore[index,union-attr]
    product = layer.scaling[ADAPTER] * (up @ down)  # type: ignore[index]
    added = product.T if layer.fan_in_fan_out else product
    return weight.float() + (added * (weight != 0) if holds_zeros else added)


def gathered_adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' weights on the CPU, float32, as peft names them in its files. A collective."""
    return {
        f"base_model.model.{plain_name(name).replace(f'.{ADAPTER}.', '.')}": whole_tensor(tensor).float().cpu()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if is_adapter(name)
    }


def save_adapter(weights: Mapping[str, torch.Tensor], options: LoraOptions, directory: Path, *, base: str) -> None:
    """Write adapters as a directory that `peft.PeftModel.from_pretrained` puts on the model they were trained on.

    Args:
        weights: as `gathered_adapter` names them.
        base: that model, as people may find it.
    """
    names = (name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in weights)
    config = adapter_config(tuple(dict.fromkeys(names)), options, base)
    config.inference_mode = True
    config.save_pretrained(directory)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "adapter_model.safetensors")


def verify_adapter(plain: PreTrainedModel, weights: Mapping[str, torch.Tensor], directory: Path) -> nn.Module:
    """Reload saved adapters with peft; returns `plain` with them.

    Args:
        plain: the model that they were trained on; where it is without weights, names and shapes are compared alone.
        weights: what was saved.

    Raises:
        AdapterError: peft reads something else.
    """
    from peft import PeftModel, get_peft_model_state_dict

    reloaded = PeftModel.from_pretrained(plain, directory, low_cpu_mem_usage=True)
    found = get_peft_model_state_dict(reloaded)
    for name in sorted(found.keys() | weights.keys()):
        one, other = found.get(name), weights.get(name)
        if one is None or other is None or one.shape != other.shape or not (one.is_meta or torch.equal(one, other)):
            raise AdapterError(f"peft does not reload {name} as it was saved; name other layers in {TARGETS_FIELD}")
    return reloaded
