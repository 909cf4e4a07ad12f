"""DSnoT against a loop that is written out, and what it never changes."""

import pytest
import torch

from shortened_llm.pruning.weight.dsnot import dsnot
from shortened_llm.pruning.weight.pattern import Pattern, parse_pattern

OUTPUTS, INPUTS = 20, 8
PATTERNS = [Pattern(sparsity=0.5), parse_pattern("2:4"), parse_pattern("4:8"), parse_pattern("1:4")]


@pytest.fixture
def given() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "weight": torch.randn((OUTPUTS, INPUTS), generator=generator, dtype=torch.float64),
        "means": 3 * torch.randn(INPUTS, generator=generator, dtype=torch.float64),
        "variances": torch.rand(INPUTS, generator=generator, dtype=torch.float64) + 0.1,
        "norms": torch.rand(INPUTS, generator=generator, dtype=torch.float64) + 0.5,
    }


def refined(given: dict[str, torch.Tensor], kept: torch.Tensor, pattern: Pattern, **settings) -> torch.Tensor:  # type: ignore[no-untyped-def]
    defaults = {"cycles": 50, "threshold": 0.1, "power": 1.0, "accept": "improving"}
    return dsnot(kept=kept, pattern=pattern, **given, **(defaults | settings))  # type: ignore[arg-type]


def written_out(
    given: dict[str, torch.Tensor],
    kept: torch.Tensor,
    pattern: Pattern,
    *,
    cycles: int = 50,
    threshold: float = 0.1,
    power: float = 1.0,
    accept: str = "improving",
) -> tuple[torch.Tensor, int]:
    """The new mask and the number of exchanges that would have made |E| larger."""
    weight, means, variances, norms = (given[name].tolist() for name in ("weight", "means", "variances", "norms"))
    mask, worse = kept.tolist(), 0
    for w, m in zip(weight, mask, strict=True):
        error, used = sum(w[j] * means[j] for j in range(INPUTS) if not m[j]), set()
        for _ in range(cycles):
            if abs(error) <= threshold:
                break
            sign = 1 if error > 0 else -1
            back = [j for j in range(INPUTS) if not m[j] and j not in used]
            if not back:
                break
            grow = max(back, key=lambda j: sign * w[j] * means[j] / variances[j] ** power)
            going = [j for j in range(INPUTS) if m[j] and j not in used]
            if pattern.of:
                going = [j for j in going if j // pattern.of == grow // pattern.of]
            else:
                going = [j for j in going if sign * w[j] * means[j] < 0]
            if not going:
                break
            gone = min(going, key=lambda j: abs(w[j]) * norms[j])
            new = error - w[grow] * means[grow] + w[gone] * means[gone]
            if abs(new) >= abs(error):
                worse += 1
                if accept == "improving":
                    break
            m[grow], m[gone], error = True, False, new
            used |= {grow, gone}
    return torch.tensor(mask), worse


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("accept", ["improving", "always"])
@pytest.mark.parametrize("settings", [{}, {"cycles": 1}, {"threshold": 2.0}, {"power": 0.0}], ids=str)
def test_it_is_the_loop_that_is_written_out(pattern: Pattern, accept: str, settings: dict, given) -> None:
    kept = pattern.lowest_in_rows(given["weight"].abs() * given["norms"])
    before = kept.clone()
    found = refined(given, kept, pattern, accept=accept, **settings)
    wanted, worse = written_out(given, kept, pattern, accept=accept, **settings)
    assert torch.equal(found, wanted)
    assert torch.equal(kept, before)
    assert not torch.equal(found, kept)
    assert worse or settings  # the choice is one here
    groups = found.reshape(-1, pattern.of or INPUTS).sum(dim=1)
    assert torch.equal(groups, kept.reshape(-1, pattern.of or INPUTS).sum(dim=1))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_means_come_nearer(pattern: Pattern, given) -> None:
    kept = pattern.lowest_in_rows(given["weight"].abs() * given["norms"])
    errors = [
        (given["weight"] * ~mask * given["means"]).sum(dim=1).abs() for mask in (kept, refined(given, kept, pattern))
    ]
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < errors[0].sum()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_changes_where_nothing_is_wrong(pattern: Pattern, given) -> None:
    kept = pattern.lowest_in_rows(given["weight"].abs())
    assert torch.equal(refined(given, kept, pattern, threshold=float("inf")), kept)
    silent = given | {"means": torch.zeros(INPUTS).double()}
    assert torch.equal(refined(silent, kept, pattern, threshold=0.0), kept)
    dead = given | {
        name: given[name].clone().index_fill_(0, torch.tensor([2]), 0) for name in given if name != "weight"
    }
    found = refined(dead, kept, pattern, accept="always")
    assert torch.equal(found.reshape(-1, 4).sum(dim=1).reshape(OUTPUTS, -1).sum(dim=1), kept.sum(dim=1))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("accept", ["improving", "always"])
def test_inputs_without_variance_lose_no_weight(pattern: Pattern, power: float, accept: str, given) -> None:
    """Constant inputs may come back first; dead ones move nothing, and the counts stay."""
    variances, means = given["variances"].clone(), given["means"].clone()
    variances[[1, 2, 5, 6]] = 0
    means[[2, 6]] = 0
    kept = pattern.lowest_in_rows(given["weight"].abs())
    found = refined(given | {"variances": variances, "means": means}, kept, pattern, power=power, accept=accept)
    size = pattern.of or INPUTS
    assert torch.equal(found.reshape(-1, size).sum(dim=1), kept.reshape(-1, size).sum(dim=1))
    if accept == "improving" and pattern.of is None:
        assert not (found & ~kept)[:, [2, 6]].any()
