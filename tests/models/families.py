"""Tiny random configurations of many architectures."""

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
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
    "qwen3_moe": Qwen3MoeConfig(
        **COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, mlp_only_layers=[1, 4]
    ),
}
