"""What is known of a running search at this moment: plain Python, made an actor by `progress.py`."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from shortened_llm.metrics import TrialState

# Until then a wait is a start like any other: processes take this long to begin.
SECONDS_BEFORE_TOLD = 20.0
SECONDS_BETWEEN_TOLD = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The board as the driver reads it."""

    lines: dict[str, str | None]
    """The latest line of each subject; None: it has ended."""
    notes: list[str]
    """Those that were not read before."""
    trials: Counter[TrialState]
    accelerator_hours: float


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
        self._hours: dict[str, float] = {}

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
        )

    def _told(self, wait: _Wait) -> str | None:
        """The line of a wait, which changes only every half minute."""
        seconds = self._clock() - wait.since
        if seconds < SECONDS_BEFORE_TOLD:
            return None
        told = max(SECONDS_BEFORE_TOLD, seconds // SECONDS_BETWEEN_TOLD * SECONDS_BETWEEN_TOLD)
        of = "" if wait.limit_seconds is None else f" of {wait.limit_seconds:.0f} s"
        return f"waiting for {wait.what} ({told:.0f} s{of})"
