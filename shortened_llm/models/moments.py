"""What the layers of a block read, as sums over tokens: all that layer-wise methods want of the calibration text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Moments:
    """First and second moments of the inputs of a layer, in fp64, where the inputs lie."""

    def __init__(self, *, joint: bool) -> None:
        """With `joint` the products of every two inputs are summed, else the squares of each."""
        self.joint = joint
        self.count = 0
        """Tokens."""
        self._sums = torch.zeros(())
        self._products = torch.zeros(())

    def add(self, inputs: torch.Tensor) -> None:
        """Take inputs, [..., inputs], of some tokens."""
        flat = inputs.detach().flatten(0, -2).double()
        self.count += len(flat)
        self._sums = self._sums.to(flat.device) + flat.sum(dim=0)
        products = flat.T @ flat if self.joint else flat.square().sum(dim=0)
        self._products = self._products.to(flat.device) + products

    def with_others(self, others: "Moments") -> "Moments":
        """The moments over the tokens of both."""
        if not others.count:
            return self
        both = Moments(joint=self.joint)
        both.count = self.count + others.count
        both._sums, both._products = self._sums + others._sums, self._products + others._products
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
