"""Which weights of a matrix may go together: any, or N of every M consecutive inputs stay."""

from dataclasses import dataclass
from fractions import Fraction

import torch

from shortened_llm.errors import BadInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A pattern with the share of the weights that become zero."""

    sparsity: float
    """0 to 1."""
    kept: int | None = None
    """N of a pattern N:M; None where any weight may go."""
    of: int | None = None
    """M."""

    def number(self, among: int) -> int:
        """How many of so many weights go: the share of them, rounded down."""
        return int(Fraction(str(self.sparsity)) * among)

    def lowest_in_rows(self, scores: torch.Tensor) -> torch.Tensor:
        """Which weights stay, True, where the lowest scores of each row, or of each group of M, go. Of equal ones the
        earlier goes.

        Args:
            scores: [rows, columns].
        """
        if self.of is not None:
            return self._groups(scores, self.of)
        return _all_but_lowest(scores, self.number(scores.shape[1]))

    def lowest(self, scores: torch.Tensor) -> torch.Tensor:
        """Which weights stay where the lowest scores of the whole matrix go, or of each group of M."""
        if self.of is not None:
            return self._groups(scores, self.of)
        flat = scores.reshape(1, -1)
        return _all_but_lowest(flat, self.number(scores.numel())).reshape(scores.shape)

    def check(self, columns: int, layer: str) -> None:
        """Raises `BadInputError` where a layer's inputs make no whole groups."""
        if self.of is not None and columns % self.of:
            raise BadInputError(
                f"pruning.pattern: is {self.kept}:{self.of}, but {layer} has {columns} inputs, which make no whole "
                f"groups of {self.of}"
            )

    def _groups(self, scores: torch.Tensor, size: int) -> torch.Tensor:
        assert self.kept is not None
        groups = scores.reshape(-1, size)
        return _all_but_lowest(groups, size - self.kept).reshape(scores.shape)


def _all_but_lowest(scores: torch.Tensor, number: int) -> torch.Tensor:
    """False for the `number` lowest of each row."""
    lowest = scores.argsort(dim=1, stable=True)[:, :number]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


def parse_pattern(text: str, sparsity: float | None = None) -> Pattern:
    """`unstructured` with a sparsity, or `2:4`, which says it by itself."""
    if text == "unstructured":
        assert sparsity is not None
        return Pattern(sparsity=sparsity)
    kept, of = map(int, text.split(":"))
    return Pattern(sparsity=(of - kept) / of, kept=kept, of=of)
