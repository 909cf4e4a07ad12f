"""Paired differences of two models, and when they count."""

from dataclasses import replace

import numpy as np
import pytest

from shortened_llm.records import PerplexityScore
from shortened_llm.reporting.paired import Difference, paired_difference
from tests.reporting.experiments import by_document, text


def difference(mean: float, standard_error: float | None, *per_seed: float) -> Difference:
    return Difference(mean=mean, standard_error=standard_error, per_seed=per_seed, num_clusters=100)


@pytest.mark.parametrize(
    ("judged", "verdict"),
    [
        (difference(0.051, 0.012, 0.048, 0.054), "separated"),
        (difference(-0.051, 0.012, -0.048, -0.054), "separated"),
        # Each condition alone decides.
        (difference(0.039, 0.001, 0.038, 0.040), "not separated: within 0.04 nats"),
        (difference(0.051, 0.026, 0.048, 0.054), "not separated: within 2 standard errors"),
        (difference(0.051, 0.012, -0.001, 0.103), "not separated: seeds differ in sign"),
        (difference(0.9, 0.012, 0.9), "one seed only"),
        (difference(0.9, None, 0.9, 0.9), "not separated: no standard error"),
    ],
)
def test_a_difference_counts_only_where_all_conditions_hold(judged: Difference, verdict: str) -> None:
    assert judged.verdict == verdict
    assert judged.is_separated == (verdict == "separated")


def bootstrap(first: PerplexityScore, second: PerplexityScore, samples: int = 4000) -> float:
    """Standard deviation of the difference over resampled documents."""
    draw = np.random.default_rng(7)
    size = len(first.document_nll)
    differences = np.subtract(first.document_nll, second.document_nll)
    predictions = np.array(first.document_predictions)
    chosen = draw.integers(0, size, (samples, size))
    return float((differences[chosen].sum(axis=1) / predictions[chosen].sum(axis=1)).std())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("documents", "noise"), [(300, 0.05), (300, 0.5), (60, 0.2)])
def test_the_standard_error_is_that_of_a_bootstrap_over_documents(seed: int, documents: int, noise: float) -> None:
    first = by_document("wiki", 3.6, seed=seed, documents=documents, noise=noise)
    second = by_document("wiki", 3.5, seed=seed + 50, documents=documents, noise=noise)
    found = paired_difference([(first, second)])
    assert found is not None
    assert found.standard_error is not None
    assert found.mean == pytest.approx(0.1, abs=1e-6)
    assert found.num_clusters == documents
    assert found.standard_error == pytest.approx(bootstrap(first, second), rel=0.15)


def test_pairing_takes_away_what_the_text_does_to_both() -> None:
    """Documents differ by 0.6 nats: without pairs such a difference would be far within the noise."""
    first, second = by_document("wiki", 3.6, seed=1), by_document("wiki", 3.5, seed=2)
    found = paired_difference([(first, second)])
    assert found is not None
    assert found.standard_error is not None
    losses, predictions = np.array(first.document_nll), np.array(first.document_predictions)
    alone = np.sqrt(np.square(losses - 3.6 * predictions).sum()) / predictions.sum()
    assert found.standard_error < alone / 5


def test_seeds_are_averaged_and_their_spread_is_added() -> None:
    """A second seed reads the same documents, so it does not halve what the documents contribute."""
    reference = by_document("wiki", 3.5, seed=0)
    one = by_document("wiki", 3.6, seed=1)
    same = paired_difference([(one, reference), (one, reference)])
    single = paired_difference([(one, reference)])
    assert same is not None
    assert single is not None
    assert single.standard_error is not None
    assert same.standard_error == pytest.approx(single.standard_error)
    shifted = replace(
        one,
        document_nll=tuple(nll + 0.06 * n for nll, n in zip(one.document_nll, one.document_predictions, strict=True)),
    )
    spread = paired_difference([(one, reference), (shifted, reference)])
    assert spread is not None
    assert spread.standard_error is not None
    assert spread.per_seed == pytest.approx((0.1, 0.16), abs=1e-6)
    assert spread.mean == pytest.approx(0.13, abs=1e-6)
    assert spread.standard_error**2 == pytest.approx(single.standard_error**2 + 0.03**2, rel=1e-3)


def test_two_models_that_differ_are_separated_and_two_alike_are_not() -> None:
    def seeds(mean: float, first: int) -> list[PerplexityScore]:
        return [by_document("wiki", mean + 0.003 * seed, seed=first + seed) for seed in (0, 1)]

    lora, cpt, like_cpt = seeds(3.58, 10), seeds(3.50, 20), seeds(3.51, 30)
    far, near = (
        paired_difference(list(zip(lora, cpt, strict=True))),
        paired_difference(list(zip(like_cpt, cpt, strict=True))),
    )
    assert far is not None
    assert far.verdict == "separated"
    assert near is not None
    assert near.verdict == "not separated: within 0.04 nats"


def test_scores_that_are_not_aligned_have_no_standard_error() -> None:
    plain = paired_difference([(text("wiki", 30.0), text("wiki", 20.0))] * 2)
    assert plain is not None
    assert plain.mean == pytest.approx(np.log(1.5))
    assert (plain.standard_error, plain.num_clusters) == (None, 0)
    other = paired_difference([(by_document("wiki", 3.6, seed=1), by_document("wiki", 3.5, seed=1, documents=80))] * 2)
    assert other is not None
    assert other.standard_error is None
    short = [by_document("wiki", mean, seed=1, documents=1) for mean in (3.6, 3.5)]
    single = paired_difference([(short[0], short[1])] * 2)
    assert single is not None
    assert single.verdict == "not separated: no standard error"


def test_nothing_to_compare() -> None:
    assert paired_difference([]) is None
    assert paired_difference([(text("wiki", float("inf")), text("wiki", 20.0))]) is None
