"""LLM-Barber: gradients written out, exchanges by brute force, and what they leave alone."""

import pytest
import torch
from torch import nn

from shortened_llm.pruning.weight.barber import rebuilt, squared_gradients
from shortened_llm.pruning.weight.pattern import Pattern, parse_pattern

SHAPES = {"one": (10, 16), "two": (6, 24)}
FREE, GROUPS = Pattern(sparsity=0.5), parse_pattern("2:4")
CASES = [(FREE, "block"), (FREE, "matrix"), (FREE, "row"), (FREE, "column"), (GROUPS, "row")]


@pytest.fixture
def importance() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


@pytest.fixture
def kept() -> dict[str, torch.Tensor]:
    """By other scores."""
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {name: GROUPS.lowest_in_rows(score) for name, score in scores.items()}


def test_the_gradient_of_one_layer_is_written_out() -> None:
    """2 / (outputs x tokens) ((W − W ⊙ M) X) Xᵀ, squared, in the mean over sequences."""
    layer, generator = nn.Linear(6, 4, bias=True), torch.Generator().manual_seed(2)
    dense = layer.weight.detach().clone()
    mask = torch.rand(dense.shape, generator=generator) > 0.5
    sequences = [torch.randn((1, 5, 6), generator=generator) for _ in range(3)]
    calls = [((sequence,), {}) for sequence in sequences]
    found = squared_gradients(layer, calls, {"weight": dense}, {"weight": dense * mask})["weight"]
    wanted = torch.zeros_like(dense)
    for sequence in sequences:
        x = sequence[0].T
        wanted += (2 / (4 * 5) * ((dense - dense * mask) @ x) @ x.T).square() / 3
    torch.testing.assert_close(found, wanted)
    assert torch.equal(layer.weight, dense)
    whole = squared_gradients(layer, calls, {"weight": dense}, {"weight": dense})["weight"]
    assert not whole.any()


def units(tensors: dict[str, torch.Tensor], granularity: str) -> list[torch.Tensor]:
    """Where weights compete."""
    if granularity == "block":
        return [torch.cat([one.flatten() for one in tensors.values()])]
    if granularity == "matrix":
        return [one.flatten() for one in tensors.values()]
    return [unit for one in tensors.values() for unit in (one if granularity == "row" else one.T)]


@pytest.mark.parametrize(("pattern", "granularity"), CASES)
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_exchanges_are_those_of_a_loop(pattern: Pattern, granularity: str, rate: float, kept, importance) -> None:
    before = {name: mask.clone() for name, mask in kept.items()}
    found = rebuilt(kept, importance, pattern, rate=rate, granularity=granularity)  # type: ignore[arg-type]
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    of_each = zip(*(units(tensors, granularity) for tensors in (kept, found, importance)), strict=True)
    exchanged = 0
    for mask, new, scores in of_each:
        pairs = []
        for group in range(0, len(mask), pattern.of or len(mask)):
            own = range(group, min(group + (pattern.of or len(mask)), len(mask)))
            back = sorted((j for j in own if not mask[j]), key=lambda j: -scores[j])
            going = sorted((j for j in own if mask[j]), key=lambda j: scores[j])
            pairs += [(j, k) for j, k in zip(back, going, strict=False) if scores[j] > scores[k]]
        pairs.sort(key=lambda pair: -scores[pair[0]])
        wanted = mask.clone()
        for back_, gone in pairs[: int(round(10 * rate) * len(pairs) / 10)]:
            wanted[back_], wanted[gone] = True, False
        assert torch.equal(new, wanted)
        assert new.sum() == mask.sum()
        assert (scores * new).sum() >= (scores * mask).sum()
        exchanged += int((new & ~mask).sum())
    assert (exchanged > 0) == (rate > 0)


@pytest.mark.parametrize("granularity", ["block", "matrix", "row", "column"])
def test_full_masks_stay(granularity: str, importance) -> None:
    full = {name: torch.ones_like(scores, dtype=torch.bool) for name, scores in importance.items()}
    found = rebuilt(full, importance, Pattern(sparsity=0.0), rate=1.0, granularity=granularity)  # type: ignore[arg-type]
    assert all(mask.all() for mask in found.values())


def test_rows_that_lost_different_numbers_keep_them(importance) -> None:
    """Masks of magnitude over a matrix."""
    masks = {name: FREE.lowest(scores.roll(3, 1)) for name, scores in importance.items()}
    found = rebuilt(masks, importance, FREE, rate=0.5, granularity="row")
    for name, mask in masks.items():
        assert len(set(mask.sum(dim=1).tolist())) > 1
        assert torch.equal(found[name].sum(dim=1), mask.sum(dim=1))
