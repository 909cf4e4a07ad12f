"""MRP against brute force, and the order of its variants."""

from itertools import combinations, product

import pytest
import torch

from shortened_llm.pruning.weight import mrp as module
from shortened_llm.pruning.weight.hessian import damped_inverse
from shortened_llm.pruning.weight.mrp import jointly_cheapest, mrp
from shortened_llm.pruning.weight.pattern import Pattern, parse_pattern

OUTPUTS, INPUTS, TOKENS, DAMPING = 6, 16, 300, 0.01
VARIANTS = list(product(("single", "joint"), repeat=2))


@pytest.fixture
def inputs() -> torch.Tensor:
    """[tokens, inputs], strongly dependent on one another."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn((INPUTS, INPUTS), generator=generator, dtype=torch.float64) + torch.eye(INPUTS)
    return torch.randn((TOKENS, INPUTS), generator=generator, dtype=torch.float64) @ mixing


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn((OUTPUTS, INPUTS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def damped(inputs: torch.Tensor) -> torch.Tensor:
    hessian = 2 * inputs.T @ inputs
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(INPUTS)


def cost(change: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Of each row, with the damping."""
    return (change @ damped(inputs) * change).sum(dim=1) / 2


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_each_group_loses_what_costs_least_of_all_choices(pattern: str, weight, inputs) -> None:
    """By the least-squares change of all other weights of the row, tried one by one."""
    own = parse_pattern(pattern)
    assert own.of is not None
    assert own.kept is not None
    kept = jointly_cheapest(weight, damped_inverse(2 * inputs.T @ inputs, DAMPING), own)
    hessian = damped(inputs)
    for row, start in product(range(OUTPUTS), range(0, INPUTS, own.of)):
        costs = {}
        for choice in combinations(range(start, start + own.of), own.of - own.kept):
            gone, left = list(choice), [place for place in range(INPUTS) if place not in choice]
            change = torch.zeros(INPUTS, dtype=torch.float64)
            change[gone] = -weight[row, gone]
            change[left] = -torch.linalg.solve(hessian[left][:, left], hessian[left][:, gone] @ change[gone])
            costs[choice] = float(change @ hessian @ change)
        gone = (~kept[row, start : start + own.of]).nonzero().flatten() + start
        assert tuple(gone.tolist()) == min(costs, key=costs.__getitem__)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_variants_are_in_order(pattern: str, weight, inputs) -> None:
    """The joint update is better than the single one in every row, whatever the mask."""
    hessian, own = 2 * inputs.T @ inputs, parse_pattern(pattern)
    losses, masks = {}, {}
    for mask, update in VARIANTS:
        new, kept = mrp(weight, hessian, own, mask=mask, update=update, damping=DAMPING)
        assert not new[~kept].any()
        assert (kept.reshape(-1, own.of or 1).sum(dim=1) == own.kept).all()
        losses[mask, update], masks[mask] = cost(new - weight, inputs), kept
    for mask in ("single", "joint"):
        assert (losses[mask, "joint"] <= losses[mask, "single"] * (1 + 1e-9)).all()
        assert (losses[mask, "joint"] < losses[mask, "single"]).any()
    assert not torch.equal(masks["single"], masks["joint"])
    # Of groups by themselves the joint mask is the best.
    inverse = damped_inverse(hessian, DAMPING)
    joint, single = (_by_groups(weight, masks[mask], inverse, own) for mask in ("joint", "single"))
    assert (joint <= single * (1 + 1e-12)).all()
    assert (joint < single).any()


def _by_groups(weight: torch.Tensor, kept: torch.Tensor, inverse: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    found = torch.zeros(OUTPUTS, dtype=torch.float64)
    for row, start in product(range(OUTPUTS), range(0, INPUTS, pattern.of or 1)):
        gone = (~kept[row, start : start + (pattern.of or 1)]).nonzero().flatten() + start
        found[row] += weight[row, gone] @ torch.linalg.inv(inverse[gone][:, gone]) @ weight[row, gone]
    return found


@pytest.mark.parametrize("pattern", [parse_pattern("2:4"), Pattern(sparsity=0.5)])
def test_independent_inputs_give_the_masks_of_wanda_and_change_nothing(pattern: Pattern, weight) -> None:
    sizes = torch.arange(1, INPUTS + 1).double()
    hessian = torch.diag(sizes.square())
    wanted = pattern.lowest_in_rows(weight.abs() * sizes)
    for mask, update in VARIANTS if pattern.of else VARIANTS[:2]:
        new, kept = mrp(weight, hessian, pattern, mask=mask, update=update, damping=1e-12)
        assert torch.equal(kept, wanted)
        torch.testing.assert_close(new, weight * kept, rtol=1e-9, atol=1e-9)


def test_groups_in_parts_are_the_same(weight, inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    inverse, own = damped_inverse(2 * inputs.T @ inputs, DAMPING), parse_pattern("2:4")
    whole = jointly_cheapest(weight, inverse, own)
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    assert torch.equal(jointly_cheapest(weight, inverse, own), whole)
