"""What sets model families apart, as data: rules over the block index, and the need of a beginning-of-text token.

A family whose blocks are all alike, such as Llama, Phi-3, OLMo-2, GPT-NeoX or Mixtral, needs no row. The names are
fields of configurations in transformers 5.23; where several families share a field, they read it alike.
"""

from typing import Literal

# One entry per block. Where a configuration has such a list, moduli such as `sliding_window_pattern` (Gemma 3),
# `no_rope_layer_interval` (SmolLM3) and `interleave_moe_layer_step` (Llama 4) only fill it when it is absent.
PER_BLOCK_LISTS = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "attention_layers",
    "no_rope_layers",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "indexer_types",
)
# Block indices.
INDEX_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices")
# Number of leading blocks that differ from the rest: block i is one of them when i < value.
PREFIXES = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
# Last block of a kind: block i is behind it when i > value.
LAST_INDICES = ("moe_layer_end_index",)
# Steps over the block index, and the list of blocks that they do not apply to: block i is sparse when
# (i + 1) % decoder_sparse_step == 0 and i is not in mlp_only_layers. Qwen2-MoE, Qwen3-MoE, Qwen3-Next.
STEPS_WITH_EXCEPTIONS = {"decoder_sparse_step": "mlp_only_layers"}
# Rules that no list can take the place of. A plan that changes what they say about a kept block is refused.
FIXED_RULES = (
    "decoder_sparse_step",
    "moe_layer_interval",
    "attn_layer_period",
    "attn_layer_offset",
    "expert_layer_period",
    "expert_layer_offset",
    "block_types",
    "scale_attn_by_inverse_layer_idx",
    "scale_depth",
)
# Blocks that depend on others: field, value without such a tie, what it is about.
TIES: tuple[tuple[str, object, str], ...] = (
    ("num_kv_shared_layers", 0, "later blocks read the keys and values of earlier ones"),
    ("is_heterogeneous", False, "per_layer_config describes the blocks one by one"),
)

# Families that predict at random without a beginning-of-text token in front of every sequence.
NEEDS_BOS = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text", "recurrent_gemma", "vaultgemma"}
)


def needs_bos(mode: Literal["auto", "each", "none"], model_type: str) -> bool:
    """Whether every sequence shall begin with a beginning-of-text token; `auto` leaves it to the family."""
    return model_type in NEEDS_BOS if mode == "auto" else mode == "each"
