"""Masks of a block that are better than those a criterion chose, with as many weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shortened_llm.models.linears import as_matrix
from shortened_llm.models.parts import lacks, part_name
from shortened_llm.pruning.inputs import BlockInputs
from shortened_llm.pruning.weight.barber import calls_of, rebuilt, squared_gradients
from shortened_llm.pruning.weight.dsnot import dsnot
from shortened_llm.pruning.weight.masks import Layer
from shortened_llm.records import PARTS, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBlock:
    """A block whose masks are chosen, and whose weights are whole."""

    index: int
    module: nn.Module
    inputs: BlockInputs
    layers: Mapping[str, Layer]
    """By their names in the block."""
    kept: Mapping[str, torch.Tensor]
    """Their masks, True where a weight stays, [outputs, inputs] each."""

    def layers_of(self, part: Part) -> list[str]:
        """Names of the layers of the attention or the MLP; none where it is gone."""
        if lacks(self.module, part):
            return []
        return [name for name in self.layers if name.startswith(f"{part_name(self.module, part)}.")]


def by_dsnot(block: MaskedBlock, options: Any) -> dict[str, torch.Tensor]:
    """The masks that change."""
    parts = PARTS if options.layers == "both" else (options.layers,)
    found = {}
    for name in (name for part in parts for name in block.layers_of(part)):
        layer, moments = block.layers[name], block.layers[name].inputs
        found[name] = dsnot(
            layer.weight,
            block.kept[name],
            layer.pattern,
            variances=moments.variance_within,
            means=moments.mean * moments.count / layer.num_sequences,
            norms=moments.squares.sqrt(),
            **options.model_dump(exclude={"layers"}),
        )
    return found


def by_barber(block: MaskedBlock, options: Any) -> dict[str, torch.Tensor]:
    """The masks; those of the attention are found first, and the MLP reads what it gives with them."""
    found: dict[str, torch.Tensor] = {}
    for part in PARTS:
        if not (names := block.layers_of(part)):
            continue
        prefix = part_name(block.module, part)
        calls = calls_of(prefix, block.index, block.module, block.inputs)
        own = {name: block.module.get_submodule(name) for name in names}
        dense = {name: own[name].get_parameter("weight").detach().clone() for name in names}
        masked = {name: dense[name] * as_matrix(own[name], block.kept[name]) for name in names}
        inside = {name: f"{name.removeprefix(f'{prefix}.')}.weight" for name in names}
        squares = squared_gradients(
            block.module.get_submodule(prefix),
            calls,
            {inside[name]: dense[name] for name in names},
            {inside[name]: masked[name] for name in names},
        )
        importance = {name: as_matrix(own[name], dense[name].abs() * squares[inside[name]].sqrt()) for name in names}
        kept, pattern = {name: block.kept[name] for name in names}, block.layers[names[0]].pattern
        found |= rebuilt(kept, importance, pattern, rate=options.rate, granularity=options.granularity)
        for name in names:
            own[name].get_parameter("weight").copy_(dense[name] * as_matrix(own[name], found[name]))
    return found


REFINERS: dict[str, Callable[[MaskedBlock, Any], dict[str, torch.Tensor]]] = {"dsnot": by_dsnot, "barber": by_barber}
"""By the names of the table of refiners; given a block and the refiner's options."""
