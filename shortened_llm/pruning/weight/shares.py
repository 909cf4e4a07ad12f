"""The share of each block's weights that goes, by each allocation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import StepLog
from shortened_llm.models.linears import as_matrix, linear_layers, linear_size
from shortened_llm.models.stream import StreamedModel
from shortened_llm.pruning.inputs import BlockInputs
from shortened_llm.pruning.weight.allocation import allocated
from shortened_llm.pruning.weight.alpha import alpha_shares, spectral_exponent
from shortened_llm.pruning.weight.masks import saliency
from shortened_llm.pruning.weight.owl import outliers, owl_shares
from shortened_llm.records import ModelRef, SpectralExponents
from shortened_llm.storage.layout import SPECTRA
from shortened_llm.storage.store import Store

STAGE_VERSION = 1
LIGHT = 10.0
"""The exponent of a block whose matrices have no tails, such as zeros: it was hardly trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseModel:
    """What an allocation is given."""

    ref: ModelRef
    streamed: StreamedModel
    tokens: torch.Tensor | None
    """Calibration sequences, [sequences, length]; None where no text is read."""
    memory_gib: float | None
    sparsity: float
    """The share of all weights that goes."""
    store: Store | None = None
    """Where what depends on the weights alone is kept for other plans."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights (count) of each block's linear layers."""
        return tuple(map(linear_size, self.streamed.blocks))

    def each_block(self, measure: Callable[[int, nn.Module], float]) -> list[float]:
        """A number of each block, in order."""
        found, steps = [], StepLog(self.streamed.num_blocks)
        for index, block in self.streamed.read_blocks(range(self.streamed.num_blocks)):
            found.append(measure(index, block))
            steps.add()
        return found


def by_alpha(model: DenseModel, options: Any) -> tuple[float, ...]:
    """Shares in proportion."""

    def exponent(_: int, block: nn.Module) -> float:
        weights = [layer.get_parameter("weight").detach() for layer in linear_layers(block).values()]
        known = [one for weight in weights if (one := spectral_exponent(weight, options.estimator)) is not None]
        return sum(known) / len(known) if known else LIGHT

    identity = {
        "stage": STAGE_VERSION,
        "model": model.ref.identity,
        "dtype": str(model.streamed.dtype),
        "estimator": options.estimator,
    }
    key = fingerprint(identity)
    found = model.store.read(SPECTRA, key, SpectralExponents) if model.store else None
    if found is None:
        found = SpectralExponents(of_blocks=tuple(model.each_block(exponent)))
        if model.store:
            model.store.write(SPECTRA, key, found, identity=identity, parents=model.ref.parents)
    return alpha_shares(found.of_blocks, options.epsilon)


def by_owl(model: DenseModel, options: Any) -> tuple[float, ...]:
    """Shares in proportion."""
    assert model.tokens is not None
    inputs = BlockInputs.of(model.streamed, model.tokens, memory_gib=model.memory_gib, reader="single weights")

    def stand_out(index: int, block: nn.Module) -> float:
        layers = linear_layers(block)
        moments = inputs.observe(index, block, layers, joint=False)
        inputs.pass_through(index, block)
        saliencies = (
            saliency(as_matrix(layer, layer.get_parameter("weight")).double(), moments[name])
            for name, layer in layers.items()
        )
        return outliers(saliencies, options.multiple)

    return owl_shares(model.each_block(stand_out), model.sizes, model.sparsity, options.spread)


ALLOCATORS: dict[str, Callable[[DenseModel, Any], tuple[float, ...]]] = {"alpha": by_alpha, "owl": by_owl}
"""By the names of the table of allocations; given the model and the allocation's options."""


def shares_of_blocks(model: DenseModel, allocation: tuple[str, Any] | None) -> tuple[float, ...]:
    """The share of each block's weights that goes, so that those of all add up.

    Args:
        allocation: its name and options; None: all are alike.
    """
    if allocation is None:
        return (model.sparsity,) * model.streamed.num_blocks
    name, options = allocation
    with torch.no_grad():
        wanted = ALLOCATORS[name](model, options)
    return allocated(wanted, model.sizes, model.sparsity)
