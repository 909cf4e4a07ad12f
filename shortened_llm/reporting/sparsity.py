"""Models with single weights that are zero: how many of each block, and the bytes that formats would take for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import WeightsTransform, of_kind
from shortened_llm.reporting.rows import TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseLine:
    """One plan."""

    row: TrialRow
    """The first trial of the plan."""
    transform: WeightsTransform
    shares: tuple[float | None, ...]
    """Zeros / weights of each block of the dense model, of its linear layers; None where the block is gone."""

    @property
    def zeros(self) -> int:
        """Weights (count)."""
        return sum(self.transform.zeros)

    @property
    def _bytes_each(self) -> float:
        return self.row.plan.dense.num_bytes / self.row.plan.dense.parameters

    @property
    def _bytes_of_others(self) -> float:
        """Bytes of what is not pruned weight by weight."""
        return self.row.plan.size.num_bytes - sum(self.transform.weights) * self._bytes_each

    @property
    def packed_bytes(self) -> float | None:
        """Bytes where every group of a pattern N:M stores N weights with their places; None without one."""
        if self.transform.pattern == "unstructured":
            return None
        kept, of = map(int, self.transform.pattern.split(":"))
        stored = sum(self.transform.weights) * kept / of
        return self._bytes_of_others + stored * (self._bytes_each + (of - 1).bit_length() / 8)

    @property
    def bitmask_bytes(self) -> float:
        """Bytes where a bit for each weight says whether it is stored."""
        weights = sum(self.transform.weights)
        return self._bytes_of_others + (weights - self.zeros) * self._bytes_each + weights / 8


def sparse_lines(rows: Sequence[TrialRow]) -> tuple[SparseLine, ...]:
    """Every plan that sets single weights to zero, once, in the order of the trials."""
    found: dict[str, SparseLine] = {}
    for row in rows:
        transform = of_kind(row.plan.transforms, WeightsTransform)
        if transform is None or transform.fingerprint in found:
            continue
        blocks = zip(transform.blocks, transform.zeros, transform.weights, strict=True)
        shares = {block: zeros / weights for (block, _), zeros, weights in blocks}
        found[transform.fingerprint] = SparseLine(
            row=row, transform=transform, shares=tuple(map(shares.get, range(row.plan.dense.blocks)))
        )
    return tuple(found.values())
