"""How much each block, or sub-layer, matters."""

from dataclasses import dataclass

from shortened_llm.records.units import PruneUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How sure it is which units go when `count` of them are removed."""

    count: int
    removed: tuple[int, ...]
    """The units that go, ascending."""
    probabilities: tuple[float, ...]
    """For each unit, in model order, the share of resampled calibration sets by which it would go."""

    @property
    def undecided(self) -> tuple[int, ...]:
        """Units whose side of the cut depends on the calibration text: they go in 5 % to 95 % of the resamples."""
        low, high = UNDECIDED
        return tuple(b for b, p in enumerate(self.probabilities) if low <= p <= high)


UNDECIDED = (0.05, 0.95)
RESAMPLES = 1000
"""Bootstrap samples of the calibration sequences behind each probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitScores:
    """How much each unit, a block or a sub-layer, matters by one criterion."""

    criterion: str
    unit: PruneUnit = "block"
    """What has a score; its numbers stand for units in all that follows."""
    scores: tuple[float | None, ...]
    """One per unit, in model order; the lowest is removed first. None where the criterion never scores the unit."""
    order: tuple[int, ...]
    """All units, least important first, before protection."""
    sets: tuple[tuple[int, ...], ...] | None = None
    """Units to remove, ascending, for each count where the criterion chooses them anew; they then win over `order`."""
    standard_errors: tuple[float | None, ...] | None
    """One for each score, where the criterion has any."""
    cuts: tuple[Cut, ...] | None = None
    """For each requested count, where the criterion has resamples to tell it from."""
    protected: tuple[int, ...]
    """Units that a plan never removes."""
    dense_perplexity: float | None
    """Perplexity of the dense model on the calibration set, where the criterion measures it."""
    tokens: int = 0
    """Calibration tokens read: sequences times their length."""
    protocol: str
    """Text, lengths, dtype and options behind the scores, in words."""
    fingerprint: str
    calibration: str | None = None
    """What tells the calibration text from others of the experiment, where a criterion reads several."""
    settings: str | None = None
    """What tells the criterion's settings from others of the experiment, where it is asked for with several."""

    @property
    def ranking(self) -> str:
        """The criterion, and what tells this ranking from others by it, such as `ppl (sub-layers, seed 5)`."""
        return ranking_name(self.criterion, self.unit, self.calibration, self.settings)

    def removed(self, count: int) -> tuple[int, ...]:
        """The `count` units that go, ascending."""
        return removed_units(self.order, self.sets, self.protected, count)


def removed_units(
    order: tuple[int, ...], sets: tuple[tuple[int, ...], ...] | None, protected: tuple[int, ...], count: int
) -> tuple[int, ...]:
    """The `count` units that go, ascending: the set of that size, else the first unprotected ones of the order.

    Protection wins: a protected unit is passed over in an order, and criteria choose their sets around it.
    """
    for chosen in sets or ():
        if len(chosen) == count:
            return chosen
    return tuple(sorted([unit for unit in order if unit not in protected][:count]))


def ranking_name(criterion: str, unit: PruneUnit, calibration: str | None, settings: str | None) -> str:
    named = {"block": "", "sublayer": "sub-layers", "width": "width", "weight": "weights"}[unit]
    told_apart = ", ".join(part for part in (named, calibration, settings) if part)
    return f"{criterion} ({told_apart})" if told_apart else criterion
