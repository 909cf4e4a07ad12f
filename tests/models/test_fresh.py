"""Random weights are those of the architecture's code, whole, and follow from the seed."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaPreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.build import empty_model
from shortened_llm.models.fresh import check_drawn, fresh_weights
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import draw_weights
from tests.conftest import SaveModel, keeping, reference_to
from tests.models.families import COMMON, FAMILIES, INDEXED


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_drawn(family: str) -> None:
    drawn = dict(fresh_weights(empty_model(FAMILIES[family]), seed=0))
    named = dict(empty_model(FAMILIES[family]).named_parameters(remove_duplicate=False))
    buffers = dict(empty_model(FAMILIES[family]).named_buffers())
    assert {name: drawn[name].shape for name in named} == {name: p.shape for name, p in named.items()}
    assert drawn.keys() - named.keys() <= buffers.keys()
    assert all(value.isfinite().all() for value in drawn.values())


def test_the_seed_decides_and_no_two_blocks_are_alike() -> None:
    first, again, other = (dict(fresh_weights(empty_model(FAMILIES["llama"]), seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    name = "model.layers.{}.mlp.up_proj.weight"
    assert not torch.equal(first[name.format(0)], other[name.format(0)])
    assert not torch.equal(first[name.format(0)], first[name.format(1)])
    spread = first["model.embed_tokens.weight"].std()
    assert spread == pytest.approx(FAMILIES["llama"].initializer_range, rel=0.05)


@pytest.mark.parametrize("family", ["llama_tied", "gemma3"])
def test_a_view_gets_them_all(family: str, save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES[family])
    view = load_model(ref.view(keeping((0, 2, 5))), "float32")
    draw_weights(view, ref.view(keeping((0, 2, 5))), seed=3)
    drawn = dict(fresh_weights(empty_model(view.config), seed=3))
    for name, parameter in view.named_parameters():
        assert torch.equal(parameter, drawn[name]), name
    assert view.lm_head.weight is view.model.embed_tokens.weight


def test_biases_that_choose_experts_begin_anew(save_random_model: SaveModel, tmp_path: Path) -> None:
    """They are buffers, which no gradient moves: the dense model's would go on choosing."""
    model, _ = save_random_model(INDEXED["deepseek_v3"])
    chosen_by = "e_score_correction_bias"
    for name, buffer in model.named_buffers():
        if chosen_by in name:
            buffer.fill_(3.0)
    model.save_pretrained(tmp_path)
    ref = reference_to(tmp_path)
    view = load_model(ref, "float32")
    before = [buffer.clone() for name, buffer in view.named_buffers() if chosen_by in name]
    assert before
    assert all((buffer == 3).all() for buffer in before)
    draw_weights(view, ref, seed=0)
    assert not any(buffer.any() for name, buffer in view.named_buffers() if chosen_by in name)


def test_what_nobody_draws_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws_no_mlp(model: LlamaPreTrainedModel, module: nn.Module) -> None:
        if not isinstance(module, LlamaMLP | nn.Linear):
            module.weight.fill_(1.0) if hasattr(module, "weight") else None

    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", draws_no_mlp)
    with pytest.raises(BadInputError, match=r"scratch .* llama models draws none for .*proj.weight"):
        check_drawn(LlamaConfig(**COMMON))
