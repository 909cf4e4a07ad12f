"""Single weights go block by block: each block is pruned by what it reads behind the pruned ones.

One block is in memory beside the hidden states of the calibration text and the moments of the block's inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from shortened_llm.logs import StepLog
from shortened_llm.models.linears import as_matrix, linear_layers
from shortened_llm.models.stream import StreamedModel
from shortened_llm.pruning.inputs import BlockInputs
from shortened_llm.pruning.weight.joint import joint_update
from shortened_llm.pruning.weight.masks import MASKERS, Layer
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.pruning.weight.refinement import REFINERS, MaskedBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedBlock:
    """What becomes of a block's layers, by their names in it."""

    weights: Mapping[str, torch.Tensor]
    """[outputs, inputs] each, with zeros."""
    kept: Mapping[str, torch.Tensor]
    """Masks, True where a weight stays."""
    exchanged: int = 0
    """Weights (count) that the refinement brought back, each in the place of one that went."""

    @property
    def zeros(self) -> int:
        """Weights (count) that go."""
        return sum(int((~mask).sum()) for mask in self.kept.values())


@torch.no_grad()
def pruned_blocks(
    streamed: StreamedModel,
    tokens: torch.Tensor | None,
    recipe: Recipe,
    shares: Sequence[float],
    *,
    memory_gib: float | None,
) -> Iterator[tuple[int, nn.Module, PrunedBlock]]:
    """Each block with what becomes of it, in order; the module is the pruned one.

    Args:
        tokens: calibration sequences, [sequences, length], in CPU memory; None where no text is read.
        shares: of each block's weights, what goes.
        memory_gib: for the hidden states; half of the free memory unless given.

    Raises:
        BadInputError: the model cannot be walked block by block, the pattern does not fit a layer, or memory has no
            room for the hidden states.
    """
    inputs, steps = None, StepLog(streamed.num_blocks)
    if tokens is not None:
        inputs = BlockInputs.of(streamed, tokens, memory_gib=memory_gib, reader="single weights")
    for index, block in streamed.read_blocks(range(streamed.num_blocks)):
        pruned = _pruned(index, block, inputs, recipe, shares[index])
        for name, layer in linear_layers(block).items():
            layer.get_parameter("weight").copy_(as_matrix(layer, pruned.weights[name]))
        if inputs is not None:
            inputs.pass_through(index, block)
        yield index, block, pruned
        del pruned  # or two blocks' weights in fp64 lie beside each other
        steps.add()


def _pruned(index: int, block: nn.Module, inputs: BlockInputs | None, recipe: Recipe, share: float) -> PrunedBlock:
    """Mask, refinement and compensation of one block."""
    modules, (criterion, options) = linear_layers(block), recipe.criterion
    moments = {}
    if inputs is not None:
        is_refined = recipe.refinement is not None
        moments = inputs.observe(index, block, modules, joint=recipe.is_joint, within=is_refined)
    layers = {
        name: Layer(
            weight=as_matrix(module, module.get_parameter("weight")).double(),
            moments=moments.get(name),
            num_sequences=0 if inputs is None else len(inputs.states),
            pattern=replace(recipe.pattern, sparsity=share),
            is_mask_alone=recipe.refinement is not None or recipe.refit is not None,
        )
        for name, module in modules.items()
    }
    weights, kept = {}, {}
    for name, layer in layers.items():
        layer.pattern.check(layer.weight.shape[1], name)
        weights[name], kept[name] = MASKERS[criterion](layer, options)
    exchanged = 0
    if recipe.refinement and inputs is not None:
        refiner, settings = recipe.refinement
        masked = MaskedBlock(index=index, module=block, inputs=inputs, layers=layers, kept=kept)
        refined = REFINERS[refiner](masked, settings)
        exchanged = sum(int((new & ~kept[name]).sum()) for name, new in refined.items())
        kept |= refined
        weights = {name: layer.weight * kept[name] for name, layer in layers.items()}
    if recipe.refit:
        weights = {
            name: joint_update(layer.weight, kept[name], layer.hessian, damping=recipe.refit.damping)
            for name, layer in layers.items()
        }
    return PrunedBlock(weights=weights, kept=kept, exchanged=exchanged)
