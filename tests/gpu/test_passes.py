"""The same numbers on a GPU as on the CPU: what prunes heads, channels and single weights, in float32."""

from collections import Counter

import numpy as np
import pytest
import torch

from shortened_llm.config import Refit, WeightPruning
from shortened_llm.criteria.width.optimal_brain import OptimalBrainOptions
from shortened_llm.criteria.width.taylor import WidthTaylorOptions
from shortened_llm.models.axes import axes_of, widths_of
from shortened_llm.models.stream import StreamedModel
from shortened_llm.pruning.compensation import Projections, compensated
from shortened_llm.pruning.weight.layerwise import PrunedBlock, pruned_blocks
from shortened_llm.pruning.weight.pattern import parse_pattern
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.pruning.weight.shares import DenseModel, shares_of_blocks
from shortened_llm.records import ModelRef, WidthsTransform
from shortened_llm.scoring.width import measure_inputs, measure_optimal_brain, measure_weights, measure_width_taylor
from tests.conftest import SaveModel
from tests.gpu.models import random_tokens
from tests.models.families import FAMILIES

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
FEW_WEIGHTS = 1e-3
"""Share of a mask that may differ: of weights whose scores lie nearer than what rounding moves."""


def width_statistics(streamed: StreamedModel, tokens: torch.Tensor) -> dict[str, np.ndarray]:
    found = {
        "weights": measure_weights(streamed),
        "taylor": measure_width_taylor(streamed, tokens, WidthTaylorOptions(), memory_gib=None),
    }
    if not isinstance(axes_of(streamed.model.config).groups, str):
        found |= {
            "inputs": measure_inputs(streamed, tokens, memory_gib=None),
            "optimal brain": measure_optimal_brain(streamed, tokens, OptimalBrainOptions(), memory_gib=None),
        }
    return found


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_statistics_of_widths(save_random_model: SaveModel, device: torch.device, family: str) -> None:
    """Also where heads are fixed, so that there is nothing to add up of them."""
    _, ref = save_random_model(FAMILIES[family])
    tokens = random_tokens(12, 24) % FAMILIES[family].vocab_size
    on_cpu, on_gpu = (
        width_statistics(StreamedModel.open(ref, "float32", device=place), tokens) for place in (CPU, device)
    )
    for name, expected in on_cpu.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(on_gpu[name], expected, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


def test_compensation(toy: ModelRef, device: torch.device) -> None:
    """Least squares and biases of output projections that lost inputs."""
    tokens, config = random_tokens(24, 48), StreamedModel.open(toy, "float32", device=CPU).model.config
    widths = widths_of(config)
    half = {block: range(widths.channels // 2) for block in range(toy.num_blocks)}
    plan = WidthsTransform.keeping(num_groups=widths.groups, num_channels=widths.channels, channels=half)
    projections = Projections.of(toy.view((plan,)), refits=True, bias=False)
    on_cpu, on_gpu = (
        dict(
            compensated(
                StreamedModel.open(toy, "float32", device=place), tokens, projections, Refit(), memory_gib=None,
                chosen=Counter(),
            )
        )
        for place in (CPU, device)
    )  # fmt: skip
    assert on_cpu
    for name, expected in on_cpu.items():
        found = on_gpu[name].cpu()
        assert (found - expected).norm() < 1e-3 * expected.norm(), name


PASSES = {
    "magnitude": {"criteria": ["magnitude"]},
    "wanda": {"criteria": ["wanda"]},
    "wanda 2:4": {"criteria": ["wanda"], "pattern": "2:4"},
    "owl": {"criteria": ["wanda"], "allocation": "owl"},
    "alpha": {"criteria": ["wanda"], "allocation": "alpha"},
    "dsnot": {"criteria": ["wanda"], "refine": "dsnot"},
    "barber": {"criteria": ["wanda"], "refine": "barber"},
    "refit": {"criteria": ["wanda"], "refit": {}},
    "sparsegpt": {"criteria": ["sparsegpt"]},
    "mrp": {"criteria": ["mrp"]},
    "mrp 2:4": {"criteria": ["mrp"], "pattern": "2:4"},
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_over_single_weights(toy: ModelRef, device: torch.device, name: str) -> None:
    """Masks, and what becomes of the weights that stay. The first block is exact; later ones read what it changed."""
    entry = WeightPruning.model_validate({"unit": "weight"} | PASSES[name])
    on_cpu, on_gpu = (pruned(toy, entry, place) for place in (CPU, device))
    for index, (expected, found) in enumerate(zip(on_cpu, on_gpu, strict=True)):
        for layer, mask in expected.kept.items():
            differs = (found.kept[layer].cpu() != mask).float().mean().item()
            assert differs <= FEW_WEIGHTS * (1 if index == 0 else 10), f"block {index}, {layer}"
            apart = (found.weights[layer].cpu().double() - expected.weights[layer].double()).norm()
            assert apart < (1e-2 if index == 0 else 0.1) * expected.weights[layer].norm(), f"block {index}, {layer}"


def pruned(toy: ModelRef, entry: WeightPruning, device: torch.device) -> list[PrunedBlock]:
    pattern = parse_pattern(entry.pattern, 0.5)
    recipe = Recipe.of(entry, entry.criteria[0], pattern)
    streamed = StreamedModel.open(toy, "float32", device=device)
    tokens = random_tokens(16, 64) if recipe.reads_text else None
    model = DenseModel(ref=toy, streamed=streamed, tokens=tokens, sparsity=pattern.sparsity, memory_gib=None)
    shares = shares_of_blocks(model, recipe.allocation)
    return [block for _, _, block in pruned_blocks(streamed, tokens, recipe, shares, memory_gib=None)]
