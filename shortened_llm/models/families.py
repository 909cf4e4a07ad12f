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

# Counters of extra blocks for multi-token prediction, which no causal language model of transformers builds: they lie
# behind the others in the files, or apart from them, are left out, and the counter becomes 0.
EXTRA_BLOCK_COUNTERS = ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers", "num_mtp_layers")

# Tensors that a model computes by itself, and older files hold too: pattern of the name, numbers of dimensions.
DERIVED_TENSORS = {r"rotary_emb\.inv_freq$": (1,), r"(attn|attention)\.(masked_)?bias$": (0, 4)}

# What a family makes of the head's product, in this order; a field that is absent or None does nothing. The identity of
# both ways of computing logits is checked on each model (`head.check_head`), so an unknown rule is refused.
LogitOperation = Literal["multiply", "divide", "soft_cap"]
LOGIT_RULES: tuple[tuple[str, LogitOperation], ...] = (
    ("logit_scale", "multiply"),  # Cohere
    ("lm_head_multiplier", "multiply"),  # Falcon-H1
    ("logits_scaling", "divide"),  # Granite, MiniCPM3
    ("final_logit_softcapping", "soft_cap"),  # Gemma 2 and later, NanoChat
    ("logits_soft_cap", "soft_cap"),  # RecurrentGemma
    ("output_logit_soft_cap", "soft_cap"),  # xLSTM
)
# (model type, field): where a family reads a field in another way; None: not at all.
LOGIT_EXCEPTIONS: dict[tuple[str, str], LogitOperation | None] = {
    ("hyperclovax", "logits_scaling"): "multiply",
    ("mpt", "logit_scale"): None,
}

# Subclasses of nn.Linear that compute what it computes, so that a low-rank adapter may stand beside them.
LINEAR_SUBCLASSES = ("FalconLinear",)
# Parts of the names of linear layers that choose experts: an adapter there would move tokens between them.
ROUTERS = ("gate", "router", "router_gate", "shared_expert_gate")
# Linear layers of modules whose class has one of these words in its name, which fused kernels read without calling the
# layer: an adapter would be trained on CPU and ignored on a GPU.
KERNEL_MODULES, KERNEL_LINEARS = ("Mamba", "BambaMixer", "FalconH1Mixer"), ("out_proj", "x_proj", "dt_proj")

# Models of several modalities whose text part alone computes what the whole does on text; test_text_part.py shows it.
TEXT_PARTS = frozenset(
    {"exaone4_5", "gemma3", "internvl", "lfm2_vl", "llama4", "llava", "mistral3", "qwen3_5", "qwen3_5_moe"}
)

# Families that predict at random without a beginning-of-text token in front of every sequence.
NEEDS_BOS = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text", "recurrent_gemma", "vaultgemma"}
)


def needs_bos(mode: Literal["auto", "each", "none"], model_type: str) -> bool:
    """Whether every sequence shall begin with a beginning-of-text token; `auto` leaves it to the family."""
    return model_type in NEEDS_BOS if mode == "auto" else mode == "each"
