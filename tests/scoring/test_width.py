"""Scores of heads and channels: statistics, gradients, planted structure."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.criteria.width import WIDTH_CRITERIA
from shortened_llm.criteria.width.criterion import (
    COLUMN_MEAN,
    COLUMN_SQUARES,
    MEAN,
    NORM,
    PUBLIC_VARIANCE,
    VARIANCE,
    WidthMeasured,
)
from shortened_llm.models.axes import axes_of, widths_of
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.walk import TOKEN_BYTES_PER_CALL
from shortened_llm.scoring.width import measure_inputs, measure_optimal_brain, measure_weights, measure_width_taylor
from tests.conftest import SaveModel, reference_to
from tests.models.families import COMMON, FAMILIES

MHA: PretrainedConfig = FAMILIES["llama"].__class__(**COMMON | {"num_key_value_heads": 4})


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 97, (5, 16), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every walk has several calls."""
    monkeypatch.setitem(TOKEN_BYTES_PER_CALL, "cpu", 4 * 48)


def scores(criterion: str, streamed: StreamedModel, tokens: torch.Tensor, **options: object):  # type: ignore[no-untyped-def]
    row, widths = WIDTH_CRITERIA[criterion], widths_of(streamed.model.config)
    own = row.options(**options)
    values = {
        "width_input_statistics": lambda: measure_inputs(streamed, tokens, memory_gib=None),
        "width_optimal_brain": lambda: measure_optimal_brain(streamed, tokens, own, memory_gib=None),  # type: ignore[arg-type]
        "width_weights": lambda: measure_weights(streamed),
        "width_taylor": lambda: measure_width_taylor(streamed, tokens, own, memory_gib=None),  # type: ignore[arg-type]
        None: lambda: np.arange(streamed.num_blocks),
    }[row.measured]()
    return row.reduce(WidthMeasured(values=values, groups=widths.groups, channels=widths.channels, options=own))


def what_it_reads(module: nn.Module, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False)
    hook.remove()
    return seen[0].flatten(0, 1).double()


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2"])
def test_inputs_are_those_of_the_models_own_forward_pass(family: str, save_random_model: SaveModel, tokens) -> None:
    model, ref = save_random_model(FAMILIES[family])
    found = measure_inputs(StreamedModel.open(ref, "float32"), tokens, memory_gib=None)
    again = measure_inputs(StreamedModel.open(ref, "float32"), tokens, memory_gib=16 * 32 * 4 * 3 / 2**30)
    np.testing.assert_allclose(again, found, rtol=1e-6, atol=1e-12)
    for index, block in enumerate(find_blocks(model)):
        projections = (block.self_attn.o_proj, block.mlp.down_proj)
        inputs = torch.cat([what_it_reads(one, model, tokens) for one in projections], dim=1)
        weight = torch.cat([one.weight.detach().double() for one in projections], dim=1)
        for place, wanted in (
            (MEAN, inputs.mean(dim=0)), (VARIANCE, inputs.var(dim=0, correction=0)), (NORM, inputs.norm(dim=0)),
            (COLUMN_MEAN, weight.abs().mean(dim=0)), (COLUMN_SQUARES, weight.square().sum(dim=0)),
        ):  # fmt: skip
            np.testing.assert_allclose(found[index, place], wanted, rtol=1e-4, atol=1e-6)


def test_a_channel_that_never_varies_scores_lowest_by_flap(save_random_model: SaveModel, tokens, tmp_path) -> None:
    """One that is dead: its gate is zero, so that its input is 0 for every token."""
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for block in find_blocks(model):
            block.mlp.gate_proj.weight[17] = 0
    model.save_pretrained(tmp_path / "model")
    streamed = StreamedModel.open(reference_to(tmp_path / "model"), "float32")
    _, channels = scores("flap", streamed, tokens)
    assert (channels.argmin(axis=1) == 17).all()
    np.testing.assert_allclose(channels.mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(channels.std(axis=1), 1, rtol=1e-9)


@pytest.mark.parametrize("config", [FAMILIES["llama"], FAMILIES["phi3"], MHA], ids=["grouped", "fused", "every_head"])
@pytest.mark.parametrize("criterion", ["wanda_sp", "magnitude", "taylor", "optimal_brain"])
def test_dead_units_score_zero(
    criterion: str, config: PretrainedConfig, save_random_model: SaveModel, tokens, tmp_path: Path
) -> None:
    """Ten channels and one group, whose rows and columns are all zero, are what goes first."""
    model, _ = save_random_model(config)
    widths, row = widths_of(config), axes_of(config)
    with torch.no_grad():
        for block in find_blocks(model):
            tensors = dict(block.named_parameters())
            for axes, units, dead in ((row.groups, widths.groups, [1]), (row.channels, widths.channels, range(5, 15))):
                for axis in axes:
                    if axis.tensor in tensors:
                        weight = tensors[axis.tensor]
                        where = axis.positions(weight.shape[axis.dim], widths, list(dead), units)
                        weight.index_fill_(axis.dim, torch.tensor(where), 0)
    model.save_pretrained(tmp_path / "model")
    streamed = StreamedModel.open(reference_to(tmp_path / "model"), "float32")
    groups, channels = scores(criterion, streamed, tokens)
    assert (groups[:, 1] == 0).all()
    assert (channels[:, 5:15] == 0).all()
    assert (np.delete(groups, 1, axis=1) > 0).all()
    assert (np.delete(channels, range(5, 15), axis=1) > 0).all()


def test_the_public_statistics_of_flap_are_a_recursion_over_sequences(save_random_model: SaveModel, tokens) -> None:
    """Written out for one channel and one input of attention, whose score is squared once more."""
    model, ref = save_random_model(FAMILIES["llama"])
    streamed = StreamedModel.open(ref, "float32")
    values = measure_inputs(streamed, tokens, memory_gib=None)
    for place, module in ((5, find_blocks(model)[2].self_attn.o_proj), (32 + 7, find_blocks(model)[2].mlp.down_proj)):
        column = place if place < 32 else place - 32
        each = what_it_reads(module, model, tokens)[:, column].reshape(len(tokens), -1)
        fluctuation = 0.0
        for number in range(2, len(tokens) + 1):
            mean = each[:number].mean().item()
            fluctuation = fluctuation * (number - 2) / (number - 1)
            fluctuation += (each[number - 1] - mean).square().sum().item() / number
        assert values[2, PUBLIC_VARIANCE, place] == pytest.approx(fluctuation, rel=1e-5)
    own, public = (scores("flap", streamed, tokens, statistics=one) for one in ("textbook", "public"))
    assert all((one != other).any() for one, other in zip(own, public, strict=True))
    metric = (values[:, PUBLIC_VARIANCE] * values[:, COLUMN_SQUARES])[:, :32] ** 2
    heads = ((metric - metric.mean(axis=1, keepdims=True)) / metric.std(axis=1, keepdims=True)).reshape(6, 2, -1)
    np.testing.assert_allclose(public[0], heads.mean(axis=2), rtol=1e-9)


def test_optimal_brain_is_the_sum_over_a_units_weights(save_random_model: SaveModel, tokens) -> None:
    """Against the formula, written out for every layer; and in as many passes as memory asks for."""
    model, ref = save_random_model(FAMILIES["llama"])
    groups, channels = scores("optimal_brain", StreamedModel.open(ref, "float32"), tokens, damping=0.1)
    options = WIDTH_CRITERIA["optimal_brain"].options(damping=0.1)
    parts = measure_optimal_brain(
        StreamedModel.open(ref, "float32"),
        tokens,
        options,
        memory_gib=16 * 32 * 4 * 3 / 2**30,  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(parts[:, 0], np.concatenate([groups, channels], axis=1), rtol=1e-5)
    attention, mlp = find_blocks(model)[3].self_attn, find_blocks(model)[3].mlp
    each = {}
    for name, layer in {**dict(attention.named_children()), **dict(mlp.named_children())}.items():
        if isinstance(layer, nn.Linear):
            inputs = what_it_reads(layer, model, tokens)
            hessian = 2 * inputs.T @ inputs
            hessian += 0.1 * hessian.diagonal().mean() * torch.eye(len(hessian))
            each[name] = layer.weight.detach().double().square() / torch.linalg.inv(hessian).diagonal()
    channel = each["gate_proj"][7].sum() + each["up_proj"][7].sum() + each["down_proj"][:, 7].sum()
    assert channels[3, 7] == pytest.approx(channel.item(), rel=1e-5)
    config = FAMILIES["llama"]
    size = config.head_dim or config.hidden_size // config.num_attention_heads
    queries = size * config.num_attention_heads // config.num_key_value_heads
    group = sum(each[name][size : 2 * size].sum() for name in ("k_proj", "v_proj"))
    group += each["q_proj"][queries : 2 * queries].sum() + each["o_proj"][:, queries : 2 * queries].sum()
    assert groups[3, 1] == pytest.approx(group.item(), rel=1e-5)


def loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].double()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def test_taylor_is_the_change_of_the_loss_when_a_unit_fades(save_random_model: SaveModel, tokens, tmp_path) -> None:
    """Scaling all weights of a unit by 1 - h moves the loss by h times the sum of its products."""
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for block in find_blocks(model):
            for weight in block.parameters():
                weight.mul_(6 if weight.dim() > 1 else 1)  # units of a random model hardly matter
    model.save_pretrained(tmp_path / "model")
    streamed = StreamedModel.open(reference_to(tmp_path / "model"), "float32")
    groups, channels = scores("taylor", streamed, tokens, importance="vector")
    config, step = FAMILIES["llama"], 1e-2
    widths = widths_of(config)
    for block, unit, axes, units, found in (
        (0, 1, axes_of(config).groups, widths.groups, groups), (3, 20, axes_of(config).channels, 48, channels),
        (5, 47, axes_of(config).channels, 48, channels),
    ):  # fmt: skip
        tensors = dict(find_blocks(model)[block].named_parameters())
        total = 0.0
        for axis in axes:  # each tensor by itself, as the absolute values are
            if axis.tensor not in tensors:
                continue
            weight = tensors[axis.tensor]
            where = torch.tensor(axis.positions(weight.shape[axis.dim], widths, [unit], units))
            with torch.no_grad():
                before = weight.clone()
                values = []
                for factor in (1 - step, 1 + step):
                    weight.copy_(before)
                    weight.index_copy_(axis.dim, where, before.index_select(axis.dim, where) * factor)
                    values.append(loss(model, tokens).item())
                weight.copy_(before)
            total += abs(values[0] - values[1]) / (2 * step)
        assert found[block, unit] == pytest.approx(total, rel=2e-2)


def test_reductions_and_norms(save_random_model: SaveModel, tokens) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    streamed = StreamedModel.open(ref, "float32")
    found = {one: scores("taylor", streamed, tokens, reduction=one)[1] for one in ("sum", "mean", "max", "prod")}
    np.testing.assert_allclose(found["sum"], 3 * found["mean"], rtol=1e-6)  # gate, up, down
    assert (found["max"] < found["sum"]).all()
    element, vector = found["sum"], scores("taylor", streamed, tokens, importance="vector")[1]
    assert (vector <= element * (1 + 1e-9)).all()
    (_, l1), (_, l2) = (scores("magnitude", streamed, tokens, norm=norm) for norm in ("l1", "l2"))
    block = find_blocks(save_random_model(FAMILIES["llama"])[0])[2].mlp
    unit = torch.cat([block.gate_proj.weight[7], block.up_proj.weight[7], block.down_proj.weight[:, 7]]).double()
    assert l1[2, 7] == pytest.approx(unit.abs().sum().item(), rel=1e-6)
    assert l2[2, 7] == pytest.approx(unit.norm().item(), rel=1e-6)


def test_the_mixed_estimate_takes_the_squares_of_each_sequences_gradient(save_random_model: SaveModel, tokens) -> None:
    model, ref = save_random_model(FAMILIES["llama"])
    groups, channels = scores("taylor", StreamedModel.open(ref, "float32"), tokens, importance="mixed")
    first, _ = scores("taylor", StreamedModel.open(ref, "float32"), tokens)
    assert (groups != first).any()
    mlp = find_blocks(model)[2].mlp
    weights = {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
    for sequence in tokens:
        model.zero_grad()
        loss(model, sequence[None]).backward()
        for name, layer in weights.items():
            gradients[name].append(layer.weight.grad.detach().double())
    found = {}
    for name, layer in weights.items():
        weight, each = layer.weight.detach().double(), torch.stack(gradients[name])
        found[name] = (weight * each.mean(dim=0) - weight.square() / 2 * each.square().mean(dim=0)).abs()
    channel = found["gate"][7].sum() + found["up"][7].sum() + found["down"][:, 7].sum()
    assert channels[2, 7] == pytest.approx(channel.item(), rel=1e-3)


def test_the_public_grouping_adds_up_every_other_query_head(save_random_model: SaveModel, tokens) -> None:
    """Where a group's query heads are its own, both say the same."""
    config = FAMILIES["llama"].__class__(**COMMON | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4})
    for family, is_equal in ((MHA, True), (config, False)):
        model, ref = save_random_model(family)
        own, public = (
            scores("taylor", StreamedModel.open(ref, "float32"), tokens, gqa_grouping=one)[0]
            for one in ("own", "public")
        )
        assert (own == public).all() == is_equal
    model.zero_grad()
    loss(model, tokens).backward()
    attention = find_blocks(model)[1].self_attn
    products = {
        name: (layer.weight.grad * layer.weight).detach().abs().double()
        for name, layer in attention.named_children()
        if isinstance(layer, nn.Linear)
    }
    queries = products["q_proj"].reshape(8, -1).sum(dim=1)[1::2].sum()
    outputs = products["o_proj"].T.reshape(8, -1).sum(dim=1)[1::2].sum()
    values = sum(products[name][4:].sum() for name in ("k_proj", "v_proj"))
    assert public[1, 1] == pytest.approx((queries + outputs + values).item(), rel=1e-3)


def test_random_orders_follow_from_the_seed(save_random_model: SaveModel, tokens) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    streamed = StreamedModel.open(ref, "float32")
    one, again, other = (scores("random", streamed, tokens, seed=seed)[1] for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()
    assert all(sorted(row) == list(range(48)) for row in one.tolist())
