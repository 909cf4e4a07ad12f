"""What is known of a running search at this moment: plain Python, made an actor by `progress.py`."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from shortened_llm.metrics import TrialState

# Until then a wait is a start like any other: processes take this long to begin.
SECONDS_BEFORE_TOLD = 20.0
SECONDS_BETWEEN_TOLD = 30.0
UNDER_WAY: tuple[TrialState, ...] = ("waiting", "training", "scoring")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The board as the driver reads it."""

    lines: dict[str, str | None]
    """The latest line of each subject; None: it has ended."""
    notes: list[str]
    """Those that were not read before."""
    trials: Counter[TrialState]
    accelerator_hours: float
    overview: str | None
    """How far the trials are as a whole; None where none has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wait:
    what: str
    limit_seconds: float | None
    since: float


class Board:
    """The latest line of each subject, the state of each trial, the cost of each training run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, str | None] = {}
        self._waits: dict[str, _Wait] = {}
        self._notes: list[str] = []
        self._states: dict[str, TrialState] = {}
        self._begun: dict[str, float] = {}
        """When each trial that this board saw began, and not those that were done before."""
        self._took: list[float] = []
        """Seconds of each that ended."""
        self._hours: dict[str, float] = {}
        self._is_open = True

    def post(self, subject: str, line: str | None) -> None:
        self._waits.pop(subject, None)
        self._lines[subject] = line

    def wait(self, subject: str, what: str, limit_seconds: float | None) -> None:
        """The subject's line counts the seconds from now on, until another is posted."""
        self._waits[subject] = _Wait(what=what, limit_seconds=limit_seconds, since=self._clock())

    def note(self, subject: str, line: str) -> None:
        self._notes.append(f"{subject}: {line}")

    def enter(self, trial: str, state: TrialState) -> None:
        self._states[trial] = state
        if state in UNDER_WAY:
            self._begun.setdefault(trial, self._clock())
        elif trial in self._begun:
            self._took.append(self._clock() - self._begun.pop(trial))

    def close(self) -> None:
        """The driver is leaving."""
        self._is_open = False

    def is_open(self) -> bool:
        return self._is_open

    def spend(self, run: str, hours: float) -> None:
        """The accelerator-hours of a training run so far; runs that trials share count once."""
        self._hours[run] = hours

    def read(self, first_note: int) -> Reading:
        lines = dict(self._lines)
        lines |= {subject: line for subject, wait in self._waits.items() if (line := self._told(wait))}
        return Reading(
            lines=lines,
            notes=self._notes[first_note:],
            trials=Counter(self._states.values()),
            accelerator_hours=sum(self._hours.values()),
            overview=self._overview(),
        )

    def _overview(self) -> str | None:
        if not self._begun and not self._took:
            return None
        counts = Counter(self._states.values())
        under_way = sum(counts[state] for state in UNDER_WAY)
        told = [f"{counts['done']} of {len(self._states)} trials done", f"{under_way} under way"]
        told += [f"{counts[state]} {state}" for state in ("pending", "failed") if counts[state]]
        left = self._seconds_left(counts["pending"])
        return ", ".join(told) + ("" if left is None else f"; about {max(1, round(left / 60))} min left")

    def _seconds_left(self, pending: int) -> float | None:
        """By the mean time of those that ended, as many at once as now; None while none has, or none is left."""
        if not self._took or not (self._begun or pending):
            return None
        mean, now = sum(self._took) / len(self._took), self._clock()
        of_begun = sum(max(0.0, mean - (now - begun)) for begun in self._begun.values())
        return (of_begun + pending * mean) / max(1, len(self._begun))

    def _told(self, wait: _Wait) -> str | None:
        """The line of a wait, which changes only every half minute."""
        seconds = self._clock() - wait.since
        if seconds < SECONDS_BEFORE_TOLD:
            return None
        told = max(SECONDS_BEFORE_TOLD, seconds // SECONDS_BETWEEN_TOLD * SECONDS_BETWEEN_TOLD)
        of = "" if wait.limit_seconds is None else f" of {wait.limit_seconds:.0f} s"
        return f"waiting for {wait.what} ({told:.0f} s{of})"
