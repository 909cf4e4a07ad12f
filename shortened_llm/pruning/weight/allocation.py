"""Shares of the blocks' weights that make up what is asked of all."""

from collections.abc import Sequence

MOST = 0.95
"""The largest share of a block's weights that goes."""


def allocated(shares: Sequence[float], sizes: Sequence[int], sparsity: float) -> tuple[float, ...]:
    """The share of each block's weights that goes, so that `sparsity` of all do.

    Shares are scaled by one factor; what is above 0.95, or above `sparsity`, is cut, and poured over the other blocks.

    Args:
        shares: in proportion to one another.
        sizes: weights (count) of each block.
    """
    most, least = max(MOST, sparsity), 1e-9  # where all others are cut, blocks that would lose nothing lose the rest
    shares = [max(share, least) for share in shares]
    found = [0.0] * len(sizes)
    free, left = set(range(len(sizes))), sparsity * sum(sizes)
    while free:
        factor = left / sum(sizes[block] * shares[block] for block in free)
        over = {block for block in free if factor * shares[block] > most}
        for block in over or free:
            found[block] = most if over else factor * shares[block]
        left -= sum(found[block] * sizes[block] for block in over)
        free = free - over if over else set()
    return tuple(found)
