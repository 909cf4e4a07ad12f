"""The order of training: which sequences a step trains on, from its number alone.

Everything here is a pure function of (seed, position), so that a run that resumes, with any number of workers, needs
nothing but its step; nothing is kept in memory, however large the data.
"""

from functools import lru_cache

import numpy as np

BLOCK = 2**16
"""Positions after which the interleaving of weighted sources repeats; a share is a multiple of 1 / BLOCK."""
ROUNDS = 6


def locate(
    positions: np.ndarray, *, seed: int, sizes: tuple[int, ...], weights: tuple[float, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The sequences at some positions of the endless training stream.

    Without weights, every epoch visits all sequences of all sources once, in an order of its own. With weights, each
    source has its share of every stretch of positions, to within a few sequences, and is walked in epochs of its own.

    Args:
        positions: from 0, of any shape.
        sizes: sequences of each source.
        weights: share of each source, summing to 1.

    Returns:
        The source of each position and the index of its sequence there, both int64, in the shape of `positions`.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if weights is None:
        shuffled = _walk(positions, seed=seed, source=0, size=sum(sizes))
        ends = np.cumsum(sizes)
        sources = np.searchsorted(ends, shuffled, side="right")
        return sources, shuffled - (ends - sizes)[sources]
    schedule, earlier, quotas = _interleaving(seed, weights)
    blocks, places = np.divmod(positions, BLOCK)
    sources = schedule[places]
    visits = blocks * quotas[sources] + earlier[places]
    indices = np.empty_like(positions)
    for source in np.unique(sources):
        mine = sources == source
        indices[mine] = _walk(visits[mine], seed=seed, source=int(source), size=sizes[source])
    return sources, indices


@lru_cache(maxsize=4)
def _interleaving(seed: int, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(source of each position of a block, its visits before in the block, visits of each source in a block)."""
    exact = np.array(weights) * BLOCK
    quotas = np.maximum(1, np.floor(exact)).astype(np.int64)
    while quotas.sum() != BLOCK:  # the largest remainders are rounded up; a source of almost no weight has one visit
        step = 1 if quotas.sum() < BLOCK else -1
        gains = np.where((quotas > 1) | (step > 0), step * (exact - quotas), -np.inf)
        quotas[np.argmax(gains)] += step
    phases = np.random.default_rng(seed).random(len(weights))
    # The visits of a source are equally far apart in time; sorting all by their times interleaves them evenly.
    times = np.concatenate([(np.arange(quota) + phase) / quota for quota, phase in zip(quotas, phases, strict=True)])
    order = np.argsort(times, kind="stable")
    schedule = np.repeat(np.arange(len(weights)), quotas)[order]
    earlier = np.concatenate([np.arange(quota) for quota in quotas])[order]
    return schedule, earlier, quotas


def _walk(visits: np.ndarray, *, seed: int, source: int, size: int) -> np.ndarray:
    """Index of the sequence at each visit of a source: epochs without repetition, each in an order of its own."""
    epochs, places = np.divmod(visits, size)
    indices = np.empty_like(visits)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        keys = np.random.SeedSequence((seed, source, int(epoch))).generate_state(ROUNDS, np.uint64)
        indices[mine] = permute(places[mine], size, keys)
    return indices


def permute(places: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a pseudo-random permutation of 0 .. size - 1 sends some of its elements.

    A balanced Feistel network over the next power of four, applied again to what falls outside the range (cycle
    walking; Black and Rogaway 2002). A drawn permutation of a large corpus would take gigabytes in every worker.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    values = places.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << shift) | right
        outside = values >= size
    return values.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
