"""Ways of shortening side by side: at each target the best model of each, how good it is and how fast."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from shortened_llm.records import Bin, Experiment, PruneUnit
from shortened_llm.reporting import formats
from shortened_llm.reporting.columns import ScoreColumn
from shortened_llm.reporting.efficiency import Shape, lines_of
from shortened_llm.reporting.entrants import Entrant, entrants
from shortened_llm.reporting.paired import Difference
from shortened_llm.reporting.rows import Basis, TrialRow, way_of

TITLES: dict[tuple[PruneUnit, ...], str] = {
    ("block",): "without blocks",
    ("sublayer",): "without sub-layers",
    ("width",): "narrower",
    ("weight",): "sparse",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WayLine:
    """The best model of one way, with all its seeds."""

    title: str
    """`without blocks`, `without sub-layers`, `narrower` or `sparse`."""
    entrant: Entrant
    speed_ups: dict[Shape, float]
    """Dense latency / its latency; none where it was not timed."""

    @property
    def row(self) -> TrialRow:
        """The trial of its first seed."""
        return self.entrant.rows[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaysTable:
    """One target that several ways reach."""

    title: str
    """`20 % of parameters removed`."""
    lines: tuple[WayLine, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Those that all were timed at, the smallest first."""
        timed = [set(line.speed_ups) for line in self.lines if line.speed_ups]
        return tuple(sorted(set.intersection(*timed))) if len(timed) > 1 else ()

    @property
    def speeds(self) -> tuple[str, ...]:
        """`At batch 1 the model without blocks is 1.19 × as fast as the dense one, the narrower one 1.04 ×`, for each
        shape; and where the order of two turns."""
        said = []
        for shape in self.shapes:
            own = [
                f"the {_noun(line.title)} {formats.times(line.speed_ups[shape])}"
                for line in sorted(self._timed, key=lambda line: -line.speed_ups[shape])
            ]
            said.append(f"at batch {shape[0]}, {shape[2]} tokens out: {', '.join(own)} as fast as the dense one")
        if len(self.shapes) > 1:
            first, last = self.shapes[0], self.shapes[-1]
            said += [
                f"the order of the {_noun(one.title)} and the {_noun(other.title)} turns between batch {first[0]} and "
                f"batch {last[0]}"
                for one, other in combinations(self._timed, 2)
                if (one.speed_ups[first] - other.speed_ups[first]) * (one.speed_ups[last] - other.speed_ups[last]) < 0
            ]
        return tuple(said)

    @property
    def _timed(self) -> list[WayLine]:
        return [line for line in self.lines if line.speed_ups]

    def differences(self, column: ScoreColumn) -> tuple[tuple[WayLine, Difference | None], ...]:
        """Loss of every other way less that of the way that is best on a text."""
        scored = [line for line in self.lines if line.entrant.perplexity(column) is not None]
        scored.sort(key=lambda line: line.entrant.perplexity(column) or 0.0)
        return tuple((line, line.entrant.difference(scored[0].entrant, column)) for line in scored)


def _noun(title: str) -> str:
    return f"model {title}" if title.startswith("without") else f"{title} model"


def ways_tables(experiment: Experiment, rows: Sequence[TrialRow]) -> tuple[WaysTable, ...]:
    """One for each target that more than one way reached, by losses that can be compared."""
    by_target: dict[tuple[Bin, Basis], dict[tuple[PruneUnit, ...], list[TrialRow]]] = {}
    for row in rows:
        if (
            not row.is_control
            and row.status == "done"
            and row.loss is not None
            and (row.rung == 1 or not row.learning_rates)
        ):
            for target in row.plan.targets:
                by_target.setdefault((target, row.basis), {}).setdefault(way_of(row.trial), []).append(row)
    compared = {key: of_target for key, of_target in by_target.items() if len(of_target) > 1}
    times = Counter(target for target, _ in compared)
    tables = []
    for (target, _), of_target in compared.items():
        lines = tuple(_line(way, own) for way, own in sorted(of_target.items()))
        title = formats.bin_name(target, experiment.dense_size.blocks)
        chosen_by = lines[0].row.trial.spec.objective.title
        tables.append(WaysTable(title=f"{title}, by {chosen_by}" if times[target] > 1 else title, lines=lines))
    return tuple(tables)


def _line(way: tuple[PruneUnit, ...], rows: Sequence[TrialRow]) -> WayLine:
    """The plan, method and rate with the lowest mean loss over the seeds; of its seeds any may have been timed."""
    best = min(entrants(rows), key=lambda one: (-len(one.rows), sum(row.loss or 0.0 for row in one.rows)))
    timed = [row.trial.after.efficiency for row in best.rows if row.trial.after.efficiency]
    speed_ups = {of: line.speed_up for of, line in lines_of(timed[0]).items() if line.speed_up} if timed else {}
    return WayLine(title=TITLES.get(way, " and ".join(way)), entrant=best, speed_ups=speed_ups)
