"""Config surgery: lists, index lists, thresholds and steps over the block index, and what is refused."""

import pytest
from transformers import (
    DiffLlamaConfig,
    Ernie4_5_MoeConfig,
    Gemma4TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RecurrentGemmaConfig,
)

from shortened_llm.errors import BadInputError
from shortened_llm.models.transforms.blocks import check_blocks, cut_config
from shortened_llm.records import BlocksTransform
from tests.models.families import COMMON, FAMILIES, INDEXED

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("family", "kept", "expected"),
    [
        # Blocks 2 and 5 are global; the pattern of 3 would make block 2 of the cut global instead.
        ("gemma3", (1, 2, 4, 5), {"layer_types": [SLIDING, FULL, SLIDING, FULL]}),
        ("gemma2", (0, 2, 3), {"layer_types": [SLIDING, SLIDING, FULL]}),
        ("qwen2_window", (0, 3, 5), {"layer_types": [FULL, SLIDING, SLIDING], "max_window_layers": 1}),
        ("qwen2_window", (0, 1, 2), {"layer_types": [FULL] * 3, "max_window_layers": 3}),
        ("qwen3_moe", (1, 2, 4), {"mlp_only_layers": [0, 2], "decoder_sparse_step": 1}),
        # Sparse are 1 and 5: every second block, but for the listed 3.
        ("qwen3_moe_step", (1, 2, 3, 5), {"mlp_only_layers": [1, 2], "decoder_sparse_step": 1}),
        ("qwen3_moe_step", (1, 5), {"mlp_only_layers": [], "decoder_sparse_step": 1}),
        # Sparse are 2 and 5; of the blocks below 4, every second one slides.
        ("qwen2_moe_step", (1, 2, 4), {"mlp_only_layers": [0, 2], "layer_types": [FULL, SLIDING, FULL]}),
        ("deepseek_v3", (1, 2, 4, 5), {"first_k_dense_replace": 2}),
        ("deepseek_v3", (3, 4), {"first_k_dense_replace": 0}),
        ("ernie4_5_moe", (0, 2, 3, 5), {"moe_layer_start_index": 1, "moe_layer_end_index": 2}),
        ("llama4", (1, 2, 3, 5), {"moe_layers": [0, 2, 3], "no_rope_layers": [1, 0, 1, 0]}),
        ("smollm3", (0, 1, 3), {"no_rope_layers": [1, 0, 0], "layer_types": [FULL, SLIDING, SLIDING]}),
    ],
)
def test_every_block_stays_what_it_was(family: str, kept: tuple[int, ...], expected: dict[str, object]) -> None:
    transform = BlocksTransform(kept=kept)
    check_blocks((FAMILIES | INDEXED)[family], transform)
    cut = cut_config((FAMILIES | INDEXED)[family], transform)
    assert {name: getattr(cut, name) for name in expected} == expected
    assert cut.num_hidden_layers == len(kept)


def test_the_config_of_the_dense_model_stays() -> None:
    config = INDEXED["qwen3_moe_step"]
    before = config.to_dict()
    cut_config(config, BlocksTransform(kept=(0, 1)))
    assert config.to_dict() == before


def test_private_settings_are_kept() -> None:
    config = LlamaConfig(**COMMON)
    config._attn_implementation = "eager"
    assert cut_config(config, BlocksTransform(kept=(0, 1)))._attn_implementation == "eager"


INTERVAL = Ernie4_5_MoeConfig(
    **COMMON, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_interval=2, moe_layer_start_index=0
)
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 6, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
RECURRENT = RecurrentGemmaConfig(**COMMON | {"num_attention_heads": 4}, lru_width=32, attention_window_size=8)


@pytest.mark.parametrize(
    ("config", "kept", "words"),
    [
        (INTERVAL, (0, 2, 3, 5), ["moe_layer_interval=2", "block 2 would become block 1", "mlp"]),
        (GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True), (0, 2), ["scale_attn_by_inverse_layer_idx=True"]),
        (RECURRENT, (0, 2), ["block_types=['recurrent', 'recurrent', 'attention']", "block 2 would become block 1"]),
        (DiffLlamaConfig(**COMMON), (0, 2), ["diffllama", "lambda_init"]),
        (Gemma4TextConfig(**COMMON), (0, 5), ["per_layer_config"]),
    ],
)
def test_a_plan_that_would_change_a_block_is_refused(
    config: PretrainedConfig, kept: tuple[int, ...], words: list[str]
) -> None:
    with pytest.raises(BadInputError, match=r"^model\.path: ") as caught:
        check_blocks(config, BlocksTransform(kept=kept))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (INTERVAL, (0, 1, 4, 5)),  # every second block is still sparse
        (INTERVAL, (0, 3)),
        (GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True), (0, 1, 2)),
        (GPT2Config(**GPT2), (0, 2, 5)),
        (RECURRENT, (0, 1, 2, 3)),
        (RECURRENT, (3, 4, 5)),
        (DiffLlamaConfig(**COMMON), (0, 1, 2)),
    ],
)
def test_a_plan_is_not_refused_for_a_rule_that_changes_no_kept_block(
    config: PretrainedConfig, kept: tuple[int, ...]
) -> None:
    transform = BlocksTransform(kept=kept)
    check_blocks(config, transform)
    assert cut_config(config, transform).num_hidden_layers == len(kept)
