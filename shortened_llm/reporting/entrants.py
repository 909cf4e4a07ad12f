"""Who takes part in a comparison of retraining methods: of each method its best learning rate, with all its seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shortened_llm.records import PerplexityScore, Transform
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.paired import Difference, paired_difference
from shortened_llm.reporting.rows import TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One line of a comparison. A number is None where nothing was measured."""

    name: str
    kind: Literal["method", "control", "untrained"]
    scores: Mapping[int | None, Measurements]
    """By seed; a model that was not trained has the one seed None."""
    rows: tuple[TrialRow, ...] = ()
    """Finished trials, one per seed, all with the same learning rates."""
    num_rates: int = 0
    """Learning rates (for a chain, and with settings: combinations) that these were the best of."""
    num_trials: int = 0
    """Trials of the method, whether or not they finished."""
    num_unfinished: int = 0

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return self.rows[0].learning_rates if self.rows else ()

    @property
    def is_dense_control(self) -> bool:
        """Whether it is the dense model, trained as the methods were."""
        return any(row.trial.spec.control == "dense" for row in self.rows)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(seed for seed in self.scores if seed is not None))

    @property
    def tokens(self) -> float | None:
        """Mean over the seeds; likewise below."""
        return _mean(row.tokens for row in self.rows)

    @property
    def training_seconds(self) -> float | None:
        return _mean(row.training_seconds for row in self.rows)

    @property
    def accelerator_seconds(self) -> float | None:
        return _mean(row.accelerator_seconds for row in self.rows)

    def perplexity(self, column: ScoreColumn) -> float | None:
        """Geometric mean over the seeds, so that its logarithm is the mean loss."""
        values = [found[column].value for found in self.scores.values() if column in found]
        return math.exp(sum(map(math.log, values)) / len(values)) if values else None

    def difference(self, other: "Entrant", column: ScoreColumn) -> Difference | None:
        """Loss of this less that of the other on one text, over the seeds that both have; None without any."""
        seeds = sorted(set(self.seeds) & set(other.seeds)) or self.seeds or other.seeds or (None,)
        pairs = [(self._text(seed, column), other._text(seed, column)) for seed in seeds]
        return paired_difference([(one, two) for one, two in pairs if one is not None and two is not None])

    def _text(self, seed: int | None, column: ScoreColumn) -> PerplexityScore | None:
        found = self.scores.get(None, self.scores.get(seed, {}))
        return found[column].text if column in found else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def entrants(rows: Sequence[TrialRow]) -> tuple[Entrant, ...]:
    """One entrant per method, and per control and method, in the order of `rows`."""
    groups: dict[tuple[str, tuple[Transform, ...]], list[TrialRow]] = {}
    for row in rows:
        groups.setdefault((_name(row), row.asked.transforms), []).append(row)
    return tuple(_best_rate(name, group) for (name, _), group in groups.items())


def _name(row: TrialRow) -> str:
    name = "dense" if row.trial.spec.control == "dense" else row.control_name
    return f"{name} + {row.method}" if row.is_control else row.method


def _best_rate(name: str, rows: Sequence[TrialRow]) -> Entrant:
    """The learning rates and settings with the lowest mean loss over the seeds; those that lack a seed come
    last."""
    by_rates: dict[tuple[tuple[float, ...], str], list[TrialRow]] = {}
    for row in rows:
        by_rates.setdefault((row.learning_rates, row.trial.spec.settings), []).append(row)

    def rank(rates: tuple[tuple[float, ...], str]) -> tuple[int, float, tuple[tuple[float, ...], str]]:
        losses = [row.loss for row in by_rates[rates] if row.loss is not None]
        return -len(losses), sum(losses) / len(losses) if losses else math.inf, rates

    done = sorted(
        (row for row in by_rates[min(by_rates, key=rank)] if row.status == "done"), key=lambda row: row.seed or 0
    )
    return Entrant(
        name=name,
        kind="control" if rows[0].is_control else "method",
        scores={row.seed: row.after for row in done},
        rows=tuple(done),
        num_rates=len(by_rates),
        num_trials=len(rows),
        num_unfinished=sum(row.status != "done" for row in rows),
    )
