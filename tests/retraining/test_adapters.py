"""Adapters stand beside the layers that were chosen, one each, whatever peft makes of a family's names."""

from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from shortened_llm.errors import BadInputError
from shortened_llm.models.build import empty_model
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import fill_shards
from shortened_llm.records import LoraOptions, ModelRef
from shortened_llm.retraining.adapters import (
    AdapterError,
    adapted_layers,
    adapted_share,
    adapter_targets,
    check_neutral,
    gathered_adapter,
    initial_adapter,
    inject_adapters,
    save_adapter,
    verify_adapter,
)
from tests.conftest import SaveModel
from tests.models.families import COMMON, FAMILIES, INDEXED, QWEN_EXPERTS

GLM = CONFIG_MAPPING["glm4_moe"](
    **COMMON, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1, n_group=1,
    topk_group=1, first_k_dense_replace=2, head_dim=8,
)  # fmt: skip
MIXED = {"glm4_moe": GLM, "deepseek_v3": INDEXED["deepseek_v3"], "qwen2_moe": INDEXED["qwen2_moe_step"]}
LATENT = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
LAYERS = {"glm4_moe": ATTENTION, "deepseek_v3": LATENT, "qwen2_moe": ATTENTION | MLP}


def options(*asked: str) -> LoraOptions:
    return LoraOptions(rank=2, alpha=4.0, dropout=0.0, target_modules=asked)


def adapted(ref: ModelRef, config: PretrainedConfig, *asked: str):  # type: ignore[no-untyped-def]
    model = empty_model(config)
    inject_adapters(model, options(*asked))
    fill_shards(model, ref, device="cpu", initialise=lambda name, shape: initial_adapter(name, shape, 0))
    return model.eval()


@pytest.mark.parametrize("family", MIXED)
def test_each_layer_beside_experts_gets_one(family: str, save_random_model: SaveModel, tmp_path: Path) -> None:
    """Dense and shared MLPs have the names that experts had, which peft takes for the stacked experts."""
    config = MIXED[family]
    plain, ref = save_random_model(config)
    model = adapted(ref, config)
    targets = adapter_targets(plain, ())
    assert set(adapted_layers(model)) == set(targets)
    assert {name.rpartition(".")[2] for name in targets} == LAYERS[family]
    assert not [name for name in targets if name.endswith((".gate", ".router")) or ".experts." in name]
    assert 0 < adapted_share(plain, targets) < 0.9
    check_neutral(model)
    weights = gathered_adapter(model)
    assert len(weights) == 2 * len(targets)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    save_adapter(weights, options(), tmp_path, base="somewhere")
    verify_adapter(load_model(ref, "float32"), weights, tmp_path)


@pytest.mark.parametrize(
    ("config", "name", "words"),
    [
        (FAMILIES["llama"], "qproj", ["'qproj'", "no linear layer", "down_proj, gate_proj, k_proj"]),
        (FAMILIES["mixtral"], "gate", ["'gate'", "no linear layer"]),
        (FAMILIES["qwen3_moe"], "experts", ["'experts'", "no linear layer"]),
        (FAMILIES["llama"], "lm_head", ["'lm_head'", "no linear layer of the blocks"]),
    ],
)
def test_what_cannot_have_one_is_named(config: PretrainedConfig, name: str, words: list[str]) -> None:
    with pytest.raises(BadInputError, match=r"retraining\.lora\.target_modules") as refusal:
        adapter_targets(empty_model(config), (name,))
    for word in words:
        assert word in str(refusal.value)


def test_named_layers_alone_get_one(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    layers = adapted_layers(adapted(ref, FAMILIES["llama"], "q_proj"))
    assert set(layers) == {f"model.layers.{block}.self_attn.q_proj" for block in range(6)}


def test_experts_alone_are_no_linear_layers() -> None:
    """Of a pure mixture of experts, attention gets adapters, and the share says how little that is."""
    config = CONFIG_MAPPING["qwen3_moe"](**COMMON, **QWEN_EXPERTS, head_dim=8)
    model = empty_model(config)
    targets = adapter_targets(model, ())
    assert {name.rpartition(".")[2] for name in targets} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert adapted_share(model, targets) < 0.4


def test_adapters_that_change_something_are_seen(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    model = adapted(ref, FAMILIES["llama"])
    check_neutral(model)
    layer = adapted_layers(model)["model.layers.3.mlp.up_proj"]
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.1)  # type: ignore[index,union-attr]
    with pytest.raises(AdapterError, match="before they are trained"):
        check_neutral(model)


def test_what_peft_reads_otherwise_is_seen(save_random_model: SaveModel, tmp_path: Path) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    weights = gathered_adapter(adapted(ref, FAMILIES["llama"]))
    save_adapter(weights, options(), tmp_path, base="somewhere")
    name = next(iter(weights))
    with pytest.raises(AdapterError, match="peft does not reload"):
        verify_adapter(load_model(ref, "float32"), {**weights, name: weights[name] + 1}, tmp_path)
    del weights[name]
    with pytest.raises(AdapterError, match="peft does not reload"):
        verify_adapter(load_model(ref, "float32"), weights, tmp_path)
