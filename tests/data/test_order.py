"""The order of training: epochs, shares and pure functions of the position."""

import itertools

import numpy as np
import pytest

from shortened_llm.data.order import BLOCK, locate

SIZES = (50, 70, 9)
WEIGHTS = (0.6, 0.3, 0.1)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 16, 17, 1000])
def test_an_epoch_visits_every_sequence_once(size: int) -> None:
    _, indices = locate(np.arange(3 * size), seed=3, sizes=(size,), weights=None)
    epochs = indices.reshape(3, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs.tolist())
    if size >= 10:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_orders_look_drawn() -> None:
    """Each of the 24 orders of four sequences comes up in 1/24 of the seeds; 5 standard deviations are allowed."""
    found = [tuple(locate(np.arange(4), seed=seed, sizes=(4,), weights=None)[1].tolist()) for seed in range(2400)]
    counts = [found.count(order) for order in itertools.permutations(range(4))]
    assert max(abs(count - 100) for count in counts) < 50
    _, indices = locate(np.arange(10_000), seed=0, sizes=(10_000,), weights=None)
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.05


def test_without_weights_every_sequence_is_equally_likely() -> None:
    sources, indices = locate(np.arange(sum(SIZES)), seed=0, sizes=SIZES, weights=None)
    visited = set(zip(sources.tolist(), indices.tolist(), strict=True))
    assert visited == {(source, index) for source, size in enumerate(SIZES) for index in range(size)}


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_position_is_a_pure_function(weights: tuple[float, ...] | None) -> None:
    whole = np.array(locate(np.arange(1000), seed=5, sizes=SIZES, weights=weights))
    backwards = np.array(locate(np.arange(999, -1, -1), seed=5, sizes=SIZES, weights=weights))
    assert (whole == backwards[:, ::-1]).all()
    one = [[part.item() for part in locate(np.array(p), seed=5, sizes=SIZES, weights=weights)] for p in (0, 7, 999)]
    assert one == whole[:, [0, 7, 999]].T.tolist()
    other = np.array(locate(np.arange(1000), seed=6, sizes=SIZES, weights=weights))
    assert (whole != other).any()


@pytest.mark.parametrize("length", [10, 100, 1000])
@pytest.mark.parametrize("weights", [WEIGHTS, (0.9995, 0.0004, 0.0001), (1 / 3, 1 / 3, 1 / 3)])
def test_shares_hold_in_every_stretch(length: int, weights: tuple[float, ...]) -> None:
    sources, _ = locate(np.arange(BLOCK - 3000, BLOCK + 3000), seed=1, sizes=SIZES, weights=weights)
    for source, weight in enumerate(weights):
        before = np.cumsum([0, *(sources == source)])
        assert np.abs(before[length:] - before[:-length] - weight * length).max() < 2


def test_every_source_is_walked_in_epochs_of_its_own() -> None:
    sources, indices = locate(np.arange(5000), seed=1, sizes=SIZES, weights=WEIGHTS)
    for source, size in enumerate(SIZES):
        mine = indices[sources == source]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("weights", [(1 - 1e-9, 5e-10, 5e-10), (1e-9, 1 - 1e-9)])
def test_no_source_is_lost(weights: tuple[float, ...]) -> None:
    sources, _ = locate(np.arange(BLOCK), seed=0, sizes=(10**6,) * len(weights), weights=weights)
    assert sorted(np.unique(sources)) == list(range(len(weights)))
