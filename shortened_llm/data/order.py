"""The order of training: which sequences a step trains on, from its number alone."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_sequences: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_sequences)


def sequence_at(position: int, *, seed: int, num_sequences: int) -> int:
    """Index of the sequence at a position of the endless training stream.

    Every epoch visits each sequence once, in an order of its own. A pure function, so that a run that resumes, with
    any number of workers, needs nothing but its step.
    """
    epoch, place = divmod(position, num_sequences)
    return int(_epoch_order(seed, epoch, num_sequences)[place])


def step_positions(step: int, *, global_batch_size: int, rank: int, world_size: int) -> range:
    """Positions in the training stream that one worker trains on in optimiser step `step` (from 0)."""
    per_rank = global_batch_size // world_size
    start = step * global_batch_size + rank * per_rank
    return range(start, start + per_rank)
