"""The joint update against least squares, one weight at a time, and loops over rows."""

import pytest
import torch

from shortened_llm.pruning.weight import joint
from shortened_llm.pruning.weight.joint import joint_update
from shortened_llm.pruning.weight.pattern import Pattern
from shortened_llm.pruning.weight.sparsegpt import sparsegpt

OUTPUTS, INPUTS, TOKENS = 8, 24, 300


@pytest.fixture
def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn((INPUTS, INPUTS), generator=generator, dtype=torch.float64) + 2 * torch.eye(INPUTS)
    return torch.randn((TOKENS, INPUTS), generator=generator, dtype=torch.float64) @ mixing


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn((OUTPUTS, INPUTS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def masks(kind: str) -> torch.Tensor:
    """As many of each row, or not; of most rows most."""
    scores = torch.rand((OUTPUTS, INPUTS), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pattern = Pattern(sparsity=0.7 if kind == "most" else 0.4)
    return pattern.lowest_in_rows(scores) if kind == "rows" else pattern.lowest(scores)


@pytest.mark.parametrize("kind", ["rows", "matrix", "most"])
def test_it_is_least_squares_on_the_kept_inputs(kind: str, weight, inputs) -> None:
    kept, hessian = masks(kind), 2 * inputs.T @ inputs
    found = joint_update(weight, kept, hessian, damping=1e-13)
    for row in range(OUTPUTS):
        own = kept[row].nonzero().flatten()
        wanted = torch.linalg.lstsq(inputs[:, own], inputs @ weight[row]).solution
        torch.testing.assert_close(found[row, own], wanted, rtol=1e-7, atol=1e-7)
    assert not found[~kept].any()


def test_one_weight_is_the_optimal_brain_surgeons(weight, inputs) -> None:
    hessian = 2 * inputs.T @ inputs
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(INPUTS)
    inverse = torch.linalg.inv(damped)
    kept = torch.ones_like(weight, dtype=torch.bool)
    kept[:, 5] = False
    wanted = weight - torch.outer(weight[:, 5] / inverse[5, 5], inverse[5])
    torch.testing.assert_close(joint_update(weight, kept, hessian, damping=0.01), wanted * kept)


@pytest.mark.parametrize("kind", ["matrix", "most"])
def test_it_is_one_after_another_with_the_inverse_brought_up_to_date(kind: str, weight, inputs) -> None:
    hessian, kept = 2 * inputs.T @ inputs, masks(kind)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(INPUTS)
    wanted = weight.clone()
    for row in range(OUTPUTS):
        inverse = torch.linalg.inv(damped)
        for place in (~kept[row]).nonzero().flatten().tolist():
            wanted[row] -= wanted[row, place] / inverse[place, place] * inverse[place]
            inverse = inverse - torch.outer(inverse[:, place], inverse[place]) / inverse[place, place]
    torch.testing.assert_close(joint_update(weight, kept, hessian, damping=0.01), wanted * kept, rtol=1e-7, atol=1e-9)


def test_it_is_never_worse_than_sparsegpts_update_or_zeroing(weight, inputs) -> None:
    hessian = 2 * inputs.T @ inputs
    new, kept = sparsegpt(weight, hessian, Pattern(sparsity=0.5), damping=1e-9, block_size=8)
    best = joint_update(weight, kept, hessian, damping=1e-9)
    joint_loss, update, zeroing = ((inputs @ (weight - one).T).square().sum() for one in (best, new, weight * kept))
    assert joint_loss <= update * (1 + 1e-9)
    assert joint_loss < zeroing


@pytest.mark.parametrize("kind", ["matrix", "most"])
def test_rows_in_parts_are_the_same(kind: str, weight, inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, kept = 2 * inputs.T @ inputs, masks(kind)
    kept[2], kept[3] = False, True
    whole = joint_update(weight, kept, hessian, damping=0.01)
    monkeypatch.setattr(joint, "MOST_BYTES", {"cpu": 1})
    torch.testing.assert_close(joint_update(weight, kept, hessian, damping=0.01), whole)
    everything = torch.ones_like(kept)
    assert torch.equal(joint_update(weight, everything, hessian, damping=0.01), weight)
    inputs[:, [2, 7]] = 0
    assert joint_update(weight, kept, 2 * inputs.T @ inputs, damping=0.01).isfinite().all()
