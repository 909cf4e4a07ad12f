"""Tiny random configurations of many architectures."""

from transformers import (
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}
LATENT_ATTENTION = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
    "llama_tied": LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": MistralConfig(**COMMON, sliding_window=16),
    "qwen2": Qwen2Config(**COMMON),
    "qwen3": Qwen3Config(**COMMON, head_dim=8),
    "gemma2": Gemma2Config(**COMMON, head_dim=8, sliding_window=8, final_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=8, sliding_window_pattern=3),
    "phi3": Phi3Config(**COMMON),
    "olmo2": Olmo2Config(**COMMON),
    "gpt_neox": GPTNeoXConfig(**COMMON),
    "mixtral": MixtralConfig(**COMMON, **EXPERTS),
    "qwen3_moe": Qwen3MoeConfig(**COMMON, **QWEN_EXPERTS, head_dim=8, mlp_only_layers=[1, 4]),
}

# Models whose blocks differ by a rule over their index.
INDEXED: dict[str, PretrainedConfig] = {
    "mistral_window": MistralConfig(**COMMON, sliding_window=4),
    "qwen2_window": Qwen2Config(**COMMON, **WINDOW, max_window_layers=3),
    "qwen3_window": Qwen3Config(**COMMON, **WINDOW, head_dim=8, max_window_layers=3),
    "qwen3_moe_step": Qwen3MoeConfig(**COMMON, **QWEN_EXPERTS, head_dim=8, decoder_sparse_step=2, mlp_only_layers=[3]),
    "qwen2_moe_step": Qwen2MoeConfig(
        **COMMON,
        **QWEN_EXPERTS,
        **WINDOW,
        shared_expert_intermediate_size=24,
        decoder_sparse_step=3,
        max_window_layers=4,
    ),
    "deepseek_v3": DeepseekV3Config(
        **COMMON | {"num_key_value_heads": 4},
        **LATENT_ATTENTION,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=3,
    ),
    "ernie4_5_moe": Ernie4_5_MoeConfig(
        **COMMON, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=1, moe_layer_end_index=3
    ),
    "llama4": Llama4TextConfig(
        **COMMON,
        **EXPERTS,
        head_dim=8,
        intermediate_size_mlp=48,
        attention_chunk_size=8,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=3,
    ),
    "smollm3": SmolLM3Config(**COMMON, **WINDOW, no_rope_layer_interval=2),
}
