"""Paired differences of two models, and when they count."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from shortened_llm.records import PerplexityScore
from shortened_llm.reporting.paired import (
    Difference,
    mcnemar,
    mean_difference,
    paired_difference,
    task_difference,
)
from tests.reporting.experiments import by_document, task_score, text


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


def discordant(only_first: int, only_second: int) -> float | None:
    """p of two models that differ on these numbers of items."""
    return mcnemar([1.0] * only_first + [0.0] * only_second, [0.0] * only_first + [1.0] * only_second)


def test_an_exact_p_is_the_share_of_outcomes_at_least_as_uneven() -> None:
    for tries in range(1, 13):
        for successes in range(tries + 1):
            uneven = abs(2 * successes - tries)
            outcomes = (sum(outcome) for outcome in product((0, 1), repeat=tries))
            share = sum(abs(2 * ones - tries) >= uneven for ones in outcomes) / 2**tries
            assert discordant(successes, tries - successes) == pytest.approx(share)


def test_an_exact_p_stays_exact_for_many_items() -> None:
    assert discordant(5_000, 5_000) == 1.0
    # Two standard deviations of a large binomial: the normal's 4.55 %, with its continuity correction.
    assert discordant(4_900, 5_100) == pytest.approx(0.0466, abs=2e-4)
    assert discordant(0, 5_000) == 0.0


def test_mcnemar_counts_only_the_items_on_which_the_models_differ() -> None:
    both_right = [1.0] * 50
    first = both_right + [1.0] * 1 + [0.0] * 9
    second = both_right + [0.0] * 1 + [1.0] * 9
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(first, second) == mcnemar(second, first)
    assert mcnemar(first, first) == 1.0
    assert mcnemar(first, second[:-1]) is None
    assert mcnemar((), ()) is None
    assert mcnemar([0.5, 1.0], [1.0, 1.0]) is None


def test_a_task_is_paired_item_by_item() -> None:
    dense, own = task_score("piqa", "acc", 0.7, seed=1), task_score("piqa", "acc", 0.65, seed=2)
    found = task_difference(own, dense)
    items = np.subtract(own.item_values, dense.item_values)
    assert found.value.mean == pytest.approx(own.value - dense.value)
    assert found.value.standard_error == pytest.approx(items.std(ddof=1) / math.sqrt(len(items)))
    unpaired = math.hypot(own.standard_error or 0, dense.standard_error or 0)
    assert found.value.standard_error < 0.7 * unpaired
    assert found.num_flips == sum(np.not_equal(own.item_answers, dense.item_answers))
    assert found.bits_per_byte is not None
    assert found.bits_per_byte.mean == pytest.approx((own.bits_per_byte or 0) - (dense.bits_per_byte or 0))
    assert found.mcnemar_p is not None
    assert found.stands_out == (found.mcnemar_p < 0.05)
    assert task_difference(own, own).mcnemar_p == 1.0


def test_a_task_without_aligned_items_has_the_difference_of_its_values_alone() -> None:
    dense, own = task_score("piqa", "acc", 0.7, seed=1), task_score("piqa", "acc", 0.65, seed=2, items=990)
    found = task_difference(own, dense)
    assert found.value.mean == pytest.approx(own.value - dense.value)
    assert found.value.standard_error is found.mcnemar_p is found.num_flips is found.bits_per_byte is None
    assert not found.stands_out


def test_the_error_of_a_mean_over_tasks_adds_squares() -> None:
    found = [task_difference(task_score(t, "acc", 0.6, seed=s), task_score(t, "acc", 0.7, seed=9)).value
             for t, s in (("piqa", 1), ("arc_easy", 2), ("boolq", 3))]  # fmt: skip
    mean = mean_difference(found)
    assert mean is not None
    assert mean.mean == pytest.approx(sum(one.mean for one in found) / 3)
    assert mean.standard_error == pytest.approx(math.sqrt(sum((one.standard_error or 0) ** 2 for one in found)) / 3)
    assert mean_difference([]) is None
    unknown = replace(found[0], standard_error=None)
    unsure = mean_difference([unknown, *found[1:]])
    assert unsure is not None
    assert unsure.standard_error is None
