"""What the layers of a block read, as sums over tokens: all that layer-wise methods want of the calibration text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from shortened_llm.errors import BadInputError


class Moments:
    """First and second moments of the inputs of a layer, in fp64, where the inputs lie."""

    def __init__(self, *, joint: bool, within: bool = False) -> None:
        """With `joint` the products of every two inputs are summed, else the squares of each; with `within` also the
        variances within sequences."""
        self.joint, self.within = joint, within
        self.count = 0
        """Tokens."""
        self.sequences = 0
        """Sequences; counted with `within`, where they can be told apart."""
        self._sums = torch.zeros(())
        self._products = torch.zeros(())
        self._variances = torch.zeros(())

    def add(self, inputs: torch.Tensor) -> None:
        """Take inputs, [..., inputs], of some tokens; with `within` those of whole sequences, [..., length, inputs]."""
        flat = inputs.detach().flatten(0, -2).double()
        self.count += len(flat)
        self._sums = self._sums.to(flat.device) + flat.sum(dim=0)
        products = flat.T @ flat if self.joint else flat.square().sum(dim=0)
        self._products = self._products.to(flat.device) + products
        if self.within and inputs.dim() > 2:
            sequences = inputs.detach().flatten(0, -3).double()
            self.sequences += len(sequences)
            self._variances = self._variances.to(flat.device) + sequences.var(dim=1, correction=0).sum(dim=0)

    def with_others(self, others: "Moments") -> "Moments":
        """The moments over the tokens of both."""
        if not others.count:
            return self
        both = Moments(joint=self.joint, within=self.within)
        both.count, both.sequences = self.count + others.count, self.sequences + others.sequences
        both._sums, both._products = self._sums + others._sums, self._products + others._products
        both._variances = self._variances + others._variances
        return both

    @property
    def mean(self) -> torch.Tensor:
        """Mean of each input, [inputs]."""
        return self._sums / self.count

    def gram(self, centre: torch.Tensor) -> torch.Tensor:
        """Mean over tokens of (x − c)(x − c)ᵀ, [inputs, inputs].

        Args:
            centre: c, [inputs].
        """
        assert self.joint
        crossed = torch.outer(self.mean, centre)
        return self._products / self.count - crossed - crossed.T + torch.outer(centre, centre)

    @property
    def squares(self) -> torch.Tensor:
        """Mean of the square of each input, [inputs]."""
        products = self._products.diagonal() if self.joint else self._products
        return products / self.count

    @property
    def variance(self) -> torch.Tensor:
        """Variance of each input over tokens, [inputs]."""
        return (self.squares - self.mean.square()).clamp(min=0)

    @property
    def variance_within(self) -> torch.Tensor:
        """Mean over sequences of the variance of each input over the tokens of one, [inputs].

        Raises:
            BadInputError: the layer reads the tokens of all sequences as one.
        """
        assert self.within
        if not self.sequences:
            raise BadInputError(
                "pruning.refine: is 'dsnot', but a layer of this family reads the tokens of all sequences as one, so "
                "that they cannot be told apart; refine other layers (pruning.dsnot.layers), or set refine: none"
            )
        return self._variances / self.sequences


@contextmanager
def observed(block: nn.Module, moments: Mapping[str, Moments]) -> Iterator[None]:
    """Add what the layers of a block read, by their names in it, while the context lasts."""
    hooks = [
        block.get_submodule(name).register_forward_pre_hook(lambda _, inputs, own=own: own.add(inputs[0]))
        for name, own in moments.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def layer_of(tensor: str) -> str:
    """The name of the layer that a tensor belongs to: `mlp.up_proj` of `mlp.up_proj.weight`."""
    return tensor.rsplit(".", 1)[0]
