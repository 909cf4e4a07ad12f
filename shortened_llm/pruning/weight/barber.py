"""LLM-Barber: weights come back whose gradients are large, and others go in their place."""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from shortened_llm.models.walk import Call
from shortened_llm.pruning.inputs import BlockInputs
from shortened_llm.pruning.weight.pattern import Pattern

Granularity = Literal["block", "matrix", "row", "column"]


def squared_gradients(
    module: nn.Module, calls: Iterable[Call], dense: Mapping[str, torch.Tensor], masked: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Mean over calls of the squared gradient, at the dense weights, of the mean squared difference between what a
    module gives with them and with masked ones; float32, by their names.

    Args:
        calls: arguments of the module, one sequence each.
        dense: weights of the module, by their names in it.
        masked: the same with zeros.
    """
    found, number = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in dense.items()}, 0
    with torch.enable_grad():
        leaves = {name: weight.detach().requires_grad_() for name, weight in dense.items()}
        for positional, keywords in calls:
            with torch.no_grad():
                target = _output(functional_call(module, dict(masked), positional, dict(keywords)))
            output = _output(functional_call(module, leaves, positional, dict(keywords)))
            gradients = torch.autograd.grad(F.mse_loss(output.float(), target.float()), list(leaves.values()))
            for name, gradient in zip(leaves, gradients, strict=True):
                found[name] += gradient.float().square()
            number += 1
    return {name: total / number for name, total in found.items()}


def _output(given: Any) -> torch.Tensor:
    return given[0] if isinstance(given, tuple) else given


def rebuilt(
    kept: Mapping[str, torch.Tensor],
    importance: Mapping[str, torch.Tensor],
    pattern: Pattern,
    *,
    rate: float,
    granularity: Granularity,
) -> dict[str, torch.Tensor]:
    """Masks with as many weights in each place of competition, whose weights are more important.

    What is gone, the most important first, is paired with what stays, the least important first; of the pairs of which
    the former is more important, the first are exchanged. Source: LLM-Barber, arXiv 2408.10631, section 3.

    Args:
        kept: masks, True where a weight stays, [outputs, inputs] each.
        importance: I = |W| √G, likewise.
        rate: share of these pairs that are exchanged, of each place of competition, rounded down.
    """
    if pattern.of is not None:
        return {name: _in_groups(mask, importance[name], pattern.of, rate) for name, mask in kept.items()}
    if granularity == "block":
        pooled, scores = (torch.cat([one.flatten() for one in of.values()])[None] for of in (kept, importance))
        parts = _exchanged(pooled, scores, rate)[0].split([mask.numel() for mask in kept.values()])
        return {name: part.reshape(kept[name].shape) for name, part in zip(kept, parts, strict=True)}
    found = {}
    for name, mask in kept.items():
        scores = importance[name]
        if granularity == "matrix":
            found[name] = _exchanged(mask.reshape(1, -1), scores.reshape(1, -1), rate).reshape(mask.shape)
        else:
            turned = granularity == "column"
            new = _exchanged(mask.T if turned else mask, scores.T if turned else scores, rate)
            found[name] = new.T if turned else new
    return found


def _exchanged(kept: torch.Tensor, scores: torch.Tensor, rate: float) -> torch.Tensor:
    """New masks of places of competition, [places, weights]."""
    grown, gone, is_better = _pairs(kept, scores)
    number = torch.tensor([_share(rate, one) for one in is_better.sum(dim=1).tolist()], device=kept.device)
    return _with_pairs(kept, grown, gone, torch.arange(is_better.shape[1], device=kept.device) < number[:, None])


def _in_groups(kept: torch.Tensor, scores: torch.Tensor, size: int, rate: float) -> torch.Tensor:
    """A new mask of groups of so many columns: pairs are made in groups, and the first are those of a row."""
    shape = (kept.shape[0], -1, size)
    grown, gone, is_better = _pairs(kept.reshape(-1, size), scores.reshape(-1, size))
    back = scores.reshape(-1, size).gather(1, grown).where(is_better, -torch.inf)
    ranks = back.reshape(kept.shape[0], -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    number = [_share(rate, one) for one in is_better.reshape(kept.shape[0], -1).sum(dim=1).tolist()]
    chosen = ranks < torch.tensor(number, device=kept.device)[:, None]
    new = _with_pairs(kept.reshape(-1, size), grown, gone, chosen.reshape(is_better.shape))
    return new.reshape(shape).reshape(kept.shape)


def _pairs(kept: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The columns of what comes back and of what goes, and whether the former is more important, [places, pairs]."""
    back, going = scores.where(~kept, -torch.inf), scores.where(kept, torch.inf)
    most = int(torch.minimum(kept.sum(dim=1), (~kept).sum(dim=1)).max())
    grown = back.argsort(dim=1, descending=True, stable=True)[:, :most]
    gone = going.argsort(dim=1, stable=True)[:, :most]
    return grown, gone, back.gather(1, grown) > going.gather(1, gone)


def _with_pairs(kept: torch.Tensor, grown: torch.Tensor, gone: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Masks with the chosen pairs exchanged."""
    rows = torch.arange(len(kept), device=kept.device)[:, None].expand_as(chosen)
    new = kept.clone()
    new[rows[chosen], grown[chosen]] = True
    new[rows[chosen], gone[chosen]] = False
    return new


def _share(rate: float, number: int) -> int:
    return int(Fraction(str(rate)) * number)


def calls_of(name: str, index: int, block: nn.Module, inputs: BlockInputs) -> Iterator[Call]:
    """The arguments of a module of a block, of one sequence after another."""
    seen: list[Call] = []

    def keep(_: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        seen.append((positional, keywords))

    for sequence in inputs.states.split(1):
        hook = block.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
        with torch.no_grad():
            inputs.walk.apply(index, block, sequence)
        hook.remove()
        yield seen.pop()
