"""A toy of a model: the same class, structure and number of blocks, a few thousand weights in each, drawn at random.

What the steps of a search do to a model can be tried on it in seconds, before anything is spent.
"""

import copy
import math

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.errors import BadInputError, brief

# Sizes of a toy, by the names that configurations of transformers 5.23 give them; a smaller size stays as it is.
HIDDEN = (
    "hidden_size", "n_embd", "d_model", "lru_width", "attention_hidden_size", "embedding_size", "word_embed_proj_dim",
    "embedding_dim", "dim",
)  # fmt: skip
INNER = (
    "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "block_ff_dim", "decoder_ffn_dim", "dim_ff",
    "intermediate_size_mlp", "dense_intermediate_size", "ffn_config", "shared_intermediate_size",
)  # fmt: skip
INNER_OF_EXPERTS = (
    "moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
    "expert_ffn_hidden_size", "moe_shared_intermediate_size",
)  # fmt: skip
HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads",
    "index_n_heads", "num_attention_groups", "linear_num_heads",
)  # fmt: skip
KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
CHOSEN_EXPERTS = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "num_experts_per_token", "moe_top_k")
ONE = ("n_group", "topk_group", "num_expert_groups", "num_expert_group", "mamba_n_groups", "n_groups", "num_groups")
OTHERS = {
    "head_dim": 8, "kv_channels": 8, "attention_head_dim": 8, "global_head_dim": 8, "index_head_dim": 8, "dim_head": 8,
    "rotary_dim": 8, "swa_head_dim": 8, "v_head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_head_dim": 16, "kv_lora_rank": 8, "q_lora_rank": 8, "o_lora_rank": 8, "query_pre_attn_scalar": 8,
    "index_topk": 16,
    "sliding_window": 8, "attention_window_size": 8, "attention_chunk_size": 8, "window_size": 8,
    "state_size": 8, "mamba_d_state": 8, "ssm_state_size": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "mamba_chunk_size": 16, "chunk_size": 16, "time_step_rank": 4,
    "mamba_dt_rank": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_head_dim": 8, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
    "vocab_size_per_layer_input": 128, "block_multiple_of": 16, "num_memory_heads": 2,
}  # fmt: skip
WIDTH, HEAD_COUNT, EXPERT_COUNT = 32, 4, 4
MOST_PARAMETERS = 200_000_000
"""The most that a toy may have: embedding tables keep the vocabulary."""


def toy_config(config: PretrainedConfig) -> PretrainedConfig:
    """A configuration like `config`, with small widths; blocks, vocabulary and rules over the block index stay."""
    values = copy.deepcopy(config.to_dict())
    heads, kv_heads = (_first(values, names) for names in (HEADS, KV_HEADS))
    grouped = heads and kv_heads and kv_heads < heads
    sizes = dict.fromkeys(HIDDEN, WIDTH)
    sizes |= dict.fromkeys(INNER, 3 * WIDTH // 2) | dict.fromkeys(INNER_OF_EXPERTS, 3 * WIDTH // 4)
    sizes |= dict.fromkeys(HEADS, HEAD_COUNT)
    sizes |= {name: (min(2, kv_heads) if grouped and kv_heads else HEAD_COUNT) for name in KV_HEADS}
    sizes |= dict.fromkeys(EXPERTS, EXPERT_COUNT) | dict.fromkeys(CHOSEN_EXPERTS, 2)
    sizes |= dict.fromkeys(ONE, 1) | OTHERS
    if "expand" in values and "state_size" in values:  # Mamba: all heads together are the expanded width
        sizes["num_heads"] = int(values["expand"]) * WIDTH // OTHERS["head_dim"]
    small = type(config).from_dict(_shrunk(values, sizes))
    small._attn_implementation = config._attn_implementation
    return small


def _first(values: dict[str, object], names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := values.get(name), int)), None)


def _shrunk(values: dict, sizes: dict[str, int]) -> dict:
    shrunk: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            shrunk[name] = _shrunk(value, sizes)
        elif name in sizes and isinstance(value, int) and not isinstance(value, bool):
            shrunk[name] = min(value, sizes[name])
        elif name in sizes and isinstance(value, (list, tuple)):  # one for each block
            shrunk[name] = [min(one, sizes[name]) if isinstance(one, int) else one for one in value]
        else:
            shrunk[name] = value
    return shrunk


def toy_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a `toy_config`, in fp32 and evaluation mode; equal for equal configurations.

    No weight is a constant: zeros and ones would hide what a bias or a scale does.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](copy.deepcopy(config)).float().eval()
    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if not weight.is_floating_point():
                    continue
                if isinstance(module, (nn.Linear, nn.Embedding)) and name == "weight":
                    weight.normal_(0, 1 / math.sqrt(weight.shape[-1]), generator=generator)
                elif not torch.isfinite(weight).all() or weight.std(correction=0) == 0:
                    weight.nan_to_num_(0, 0, 0).add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model


def build_toy(config: PretrainedConfig) -> PreTrainedModel:
    """A toy of the model that `config` describes.

    Raises:
        BadInputError: the class cannot be built, neither small nor, where it is small by itself, as it is.
    """
    cause: Exception | None = None
    for make in (toy_config, copy.deepcopy):
        try:
            small = make(config)
            with torch.device("meta"):
                empty = MODEL_FOR_CAUSAL_LM_MAPPING[type(small)](copy.deepcopy(small))
            if sum(weight.numel() for weight in empty.parameters()) <= MOST_PARAMETERS:
                return toy_model(small)
        except Exception as error:  # whatever a class makes of its numbers
            cause = cause or error
    said = f" ({brief(cause)})" if cause else ""
    raise BadInputError(
        f"model.path: no small copy of this {config.model_type} model could be built, on which every step is tried "
        f"before anything is spent{said}; give a model of another family"
    )
