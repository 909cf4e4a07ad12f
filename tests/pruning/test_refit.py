"""The closed form of a refitted layer against least squares, and how its damping is chosen."""

import pytest
import torch

from shortened_llm.models.moments import Moments
from shortened_llm.pruning.refit import error, fitted, refit

OUTPUTS, INPUTS, TOKENS = 6, 10, 400
ZERO = torch.zeros(INPUTS, dtype=torch.float64)
KEPT = torch.tensor([0, 2, 3, 5, 6, 8, 9])


def drawn(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs [tokens, inputs] that depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn((INPUTS, INPUTS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = torch.randn((tokens, INPUTS), generator=generator, dtype=torch.float64) @ mixing
    return torch.randn((OUTPUTS, INPUTS), generator=torch.Generator().manual_seed(2), dtype=torch.float64), inputs


def moments(inputs: torch.Tensor) -> Moments:
    found = Moments(joint=True)
    for part in inputs.split(7):
        found.add(part)
    return found


def test_without_damping_it_is_least_squares() -> None:
    weight, inputs = drawn(TOKENS)
    wanted = torch.linalg.lstsq(inputs[:, KEPT], inputs @ weight.T).solution.T
    torch.testing.assert_close(fitted(weight, KEPT, moments(inputs).gram(ZERO), 1e-14), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_damping_draws_to_the_weights_as_they_were_in_units_of_the_mean_square(damping: float) -> None:
    weight, inputs = drawn(TOKENS)
    ridge = (damping * inputs[:, KEPT].square().mean() * TOKENS).sqrt() * torch.eye(len(KEPT), dtype=torch.float64)
    rows = torch.cat([inputs[:, KEPT], ridge])
    targets = torch.cat([inputs @ weight.T, ridge @ weight[:, KEPT].T])
    wanted = torch.linalg.lstsq(rows, targets).solution.T
    torch.testing.assert_close(fitted(weight, KEPT, moments(inputs).gram(ZERO), damping), wanted, rtol=1e-8, atol=1e-8)


def test_error_is_that_of_the_outputs() -> None:
    weight, inputs = drawn(TOKENS)
    narrow = weight[:, KEPT] * 1.1
    wanted = (inputs[:, KEPT] @ narrow.T - inputs @ weight.T).square().sum(dim=1).mean()
    assert error(weight, KEPT, narrow, moments(inputs).gram(ZERO)) == pytest.approx(float(wanted), rel=1e-10)


def test_it_is_never_worse_than_the_weights_as_they_were() -> None:
    """On what the damping was chosen by; and the best damping is fitted to all tokens."""
    for tokens in (8, 40, TOKENS):
        weight, inputs = drawn(tokens)
        _, others = drawn(tokens // 4, seed=3)
        both = moments(inputs).with_others(moments(others))
        grams = {"seen": moments(inputs).gram(ZERO), "held_out": moments(others).gram(ZERO), "every": both.gram(ZERO)}
        found = refit(weight, KEPT, **grams, dampings=(0.001, 0.1, 1.0))
        if found.damping is None:
            assert torch.equal(found.weight, weight[:, KEPT])
            continue
        chosen = fitted(weight, KEPT, grams["seen"], found.damping)
        plain = error(weight, KEPT, weight[:, KEPT], grams["held_out"])
        assert error(weight, KEPT, chosen, grams["held_out"]) < plain
        assert torch.equal(found.weight, fitted(weight, KEPT, grams["every"], found.damping))


def test_too_few_tokens_leave_the_weights_alone() -> None:
    """Inputs of which a fit to three tokens learns nothing for others."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((OUTPUTS, INPUTS), generator=generator, dtype=torch.float64)
    seen, others = (torch.randn((n, INPUTS), generator=generator, dtype=torch.float64) for n in (3, 4000))
    found = refit(
        weight, KEPT, seen=moments(seen).gram(ZERO), held_out=moments(others).gram(ZERO),
        every=moments(torch.cat([seen, others])).gram(ZERO), dampings=(1e-6,),
    )  # fmt: skip
    assert found.damping is None


def test_a_dead_input_is_no_trouble() -> None:
    weight, inputs = drawn(TOKENS)
    inputs[:, [0, 1]] = 0
    assert fitted(weight, KEPT, moments(inputs).gram(ZERO), 0.1).isfinite().all()
    assert fitted(weight, KEPT, moments(torch.zeros_like(inputs)).gram(ZERO), 0.1).isfinite().all()


def test_moments_about_a_point_are_those_of_the_differences() -> None:
    _, inputs = drawn(TOKENS)
    centre = inputs.mean(dim=0)
    shifted = moments(inputs - centre)
    found = moments(inputs[:100]).with_others(moments(inputs[100:]))
    torch.testing.assert_close(found.gram(centre), shifted.gram(ZERO), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.variance, inputs.var(dim=0, correction=0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.squares, inputs.square().mean(dim=0))
