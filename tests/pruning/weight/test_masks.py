"""Which single weights go: exact counts, closed forms, and what the others make up for."""

import itertools

import pytest
import torch

from shortened_llm.criteria.weight import WEIGHT_CRITERIA
from shortened_llm.errors import BadInputError
from shortened_llm.models.moments import Moments
from shortened_llm.pruning.weight.masks import MASKERS, Layer
from shortened_llm.pruning.weight.pattern import Pattern, parse_pattern
from shortened_llm.pruning.weight.sparsegpt import sparsegpt

OUTPUTS, INPUTS, TOKENS = 12, 32, 500
PATTERNS = (parse_pattern("2:4"), parse_pattern("4:8"), parse_pattern("1:4"), parse_pattern("unstructured", 0.5))

IN_ROWS = ("wanda", "mrp")
"""They take as much from every output."""


def moments(inputs: torch.Tensor) -> Moments:
    found = Moments(joint=True)
    found.add(inputs)
    return found


@pytest.fixture
def inputs() -> torch.Tensor:
    """[tokens, inputs], dependent on one another and of different sizes."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn((INPUTS, INPUTS), generator=generator, dtype=torch.float64)
    mixing += 2 * torch.eye(INPUTS, dtype=torch.float64)
    return torch.randn((TOKENS, INPUTS), generator=generator, dtype=torch.float64) @ mixing


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn((OUTPUTS, INPUTS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pruned(criterion: str, weight: torch.Tensor, inputs: torch.Tensor, pattern: Pattern, **options: object):  # type: ignore[no-untyped-def]
    layer = Layer(weight=weight, moments=moments(inputs), num_sequences=4, pattern=pattern)
    return MASKERS[criterion](layer, WEIGHT_CRITERIA[criterion].options(**options))


def loss(weight: torch.Tensor, other: torch.Tensor, inputs: torch.Tensor) -> float:
    return (inputs @ (weight - other).T).square().sum().item()


@pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_many_go_as_were_asked(criterion: str, pattern: Pattern, weight, inputs) -> None:
    """To the weight, also where all of them tie."""
    for given in (weight, torch.ones_like(weight)):
        before = given.clone()
        new, kept = pruned(criterion, given, inputs, pattern)
        assert torch.equal(given, before)
        assert (~kept).sum() == pattern.sparsity * weight.numel()
        assert not new[~kept].any()
        assert new.isfinite().all()
        if pattern.of is not None:
            assert (kept.reshape(-1, pattern.of).sum(dim=1) == pattern.kept).all()
        if criterion in IN_ROWS:
            assert ((~kept).sum(dim=1) == pattern.sparsity * INPUTS).all()
        if not WEIGHT_CRITERIA[criterion].changes_weights:
            assert torch.equal(new[kept], given[kept])


@pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
def test_counts_are_rounded_down_and_nothing_goes_at_zero(criterion: str, weight, inputs) -> None:
    new, kept = pruned(criterion, weight, inputs, Pattern(sparsity=0.0))
    assert kept.all()
    assert torch.equal(new, weight)
    _, kept = pruned(criterion, weight, inputs, Pattern(sparsity=0.49))
    per_row = criterion in IN_ROWS
    assert (~kept).sum() == (OUTPUTS * int(0.49 * INPUTS) if per_row else int(0.49 * weight.numel()))


def test_wanda_with_equal_inputs_is_the_magnitude_of_each_row(weight, inputs) -> None:
    equal = torch.eye(INPUTS, dtype=torch.float64)
    _, kept = pruned("wanda", weight, equal, PATTERNS[-1])
    ranks = weight.abs().argsort(dim=1).argsort(dim=1)
    assert torch.equal(kept, ranks >= INPUTS // 2)
    _, scaled = pruned("wanda", weight, 7 * inputs, PATTERNS[-1])
    assert torch.equal(scaled, pruned("wanda", weight, inputs, PATTERNS[-1])[1])
    norms = inputs.norm(dim=0)
    _, kept = pruned("wanda", weight, inputs, parse_pattern("2:4"))
    lowest = (weight.abs() * norms).reshape(-1, 4).argsort(dim=1)[:, :2]
    assert not kept.reshape(-1, 4).gather(1, lowest).any()


def test_ties_are_broken_by_index() -> None:
    _, kept = pruned("magnitude", torch.ones((2, 4)).double(), torch.eye(4).double(), Pattern(sparsity=0.375))
    assert kept.tolist() == [[False, False, False, True], [True, True, True, True]]


def test_sparsegpt_without_dependence_is_the_magnitude_of_each_block(weight) -> None:
    new, kept = sparsegpt(weight, torch.eye(INPUTS).double(), PATTERNS[-1], damping=0.01, block_size=8)
    for start in range(0, INPUTS, 8):
        part, own = weight[:, start : start + 8], kept[:, start : start + 8]
        assert part[~own].abs().max() <= part[own].abs().min()
    torch.testing.assert_close(new, weight * kept)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparsegpt_is_the_optimal_brain_surgeon_of_the_columns_that_are_left(pattern: Pattern, weight, inputs) -> None:
    """Each column's update is the least-squares one on those behind it, given its own mask."""
    hessian = 2 * inputs.T @ inputs
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(INPUTS)
    new, kept = sparsegpt(weight, hessian, pattern, damping=0.01, block_size=8)
    wanted = weight.clone()
    for column in range(INPUTS):
        inverse = torch.linalg.inv(damped[column:, column:])
        error = wanted[:, column] * ~kept[:, column] / inverse[0, 0]
        wanted[:, column:] -= torch.outer(error, inverse[0])
    torch.testing.assert_close(new, wanted * kept, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_joint_optimum_update_and_zeroing_are_in_order(pattern: Pattern, weight, inputs) -> None:
    """At the mask of SparseGPT: least squares on the kept inputs is best, its update is better than none."""
    new, kept = pruned("sparsegpt", weight, inputs, pattern, damping=1e-6)
    best = torch.zeros_like(weight)
    for row in range(OUTPUTS):
        own = kept[row].nonzero().flatten()
        best[row, own] = torch.linalg.lstsq(inputs[:, own], inputs @ weight[row]).solution
    joint, update, zeroing = (loss(weight, one, inputs) for one in (best, new, weight * kept))
    assert joint <= update * (1 + 1e-9)
    assert update < zeroing


def test_dead_inputs_are_no_trouble(weight, inputs) -> None:
    inputs[:, [3, 9]] = 0
    for criterion, pattern in itertools.product(WEIGHT_CRITERIA, PATTERNS):
        new, _ = pruned(criterion, weight, inputs, pattern)
        assert new.isfinite().all()
        if WEIGHT_CRITERIA[criterion].changes_weights:
            assert not new[:, [3, 9]].any()


def test_inputs_that_make_no_whole_groups_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"pruning\.pattern: is 2:4, but mlp\.down_proj has 30 inputs"):
        parse_pattern("2:4").check(30, "mlp.down_proj")
