"""What is happening anywhere on the cluster, as log lines and metrics of the driver."""

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shortened_llm.cluster_metrics import ACCELERATOR_HOURS, TRIALS, Gauges
from shortened_llm.logs import LOGGER, about
from shortened_llm.metrics import TRIAL_STATES, TrialState
from shortened_llm.search.cluster.board import Board, Reading

POLL_SECONDS = 2.0
# Of one subject; what changes faster is shown by its latest line.
SECONDS_BETWEEN_LINES = 8.0
# No minute passes in silence.
HEARTBEAT_SECONDS = 30.0
OVERVIEW_SECONDS = 60.0
FAREWELL_SECONDS = 5.0
"""A process outlives the end of its driver by less."""


class Progress:
    """Posts lines about one subject from any process; `logs.about` takes it as a listener."""

    def __init__(self, board: object, subject: str) -> None:
        self._board, self._subject = board, subject

    def __call__(self, line: str | None) -> None:
        self._board.post.remote(self._subject, line)  # type: ignore[attr-defined]

    def note(self, line: str) -> None:
        """Post what must not be missed: unlike a line, it is not replaced by the next."""
        self._board.note.remote(self._subject, line)  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Whatever is logged in the context is about the subject, which ends with it."""
        try:
            with about(self):
                yield
        finally:
            self(None)

    def wait(self, what: str, limit_seconds: float | None) -> None:
        """Say how long the subject has been waiting, until the next line.

        Args:
            limit_seconds: after this long it gives up, or tries another way; None: never.
        """
        self._board.wait.remote(self._subject, what, limit_seconds)  # type: ignore[attr-defined]

    def enter(self, state: TrialState) -> None:
        """The subject is a trial, and this is its state from now on."""
        self._board.enter.remote(self._subject, state)  # type: ignore[attr-defined]

    def spend(self, run: str, hours: float) -> None:
        """The accelerator-hours of a training run so far, whatever the subject."""
        self._board.spend.remote(run, hours)  # type: ignore[attr-defined]

    def is_heard(self) -> bool:
        """Whether the search goes on. One that is stopped takes the board with it, and whoever asks, within seconds."""
        time.sleep(FAREWELL_SECONDS)
        try:
            return bool(ray.get(self._board.is_open.remote(), timeout=FAREWELL_SECONDS))  # type: ignore[attr-defined]
        except Exception:  # the board, or the cluster, is gone
            return False

    def about(self, subject: str) -> "Progress":
        """Give the board another subject."""
        return Progress(self._board, subject)


class ProgressLog:
    """Writes the board's lines to the driver's log, and its counts to the cluster's metrics, while the context
    lasts."""

    def __init__(self, experiment: str) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
        self._gauges = Gauges(experiment)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def about(self, subject: str) -> Progress:
        return Progress(self._board, subject)

    def __enter__(self) -> "ProgressLog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):  # of a cluster that is going away
            ray.get(self._board.close.remote(), timeout=POLL_SECONDS)
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        shown: dict[str, str] = {}
        since: dict[str, float] = {}
        last_line = last_overview = time.monotonic()
        noted = 0
        closed = False
        while not closed:
            closed = self._closed.wait(POLL_SECONDS)  # once more after the end, for the last notes
            try:
                reading: Reading = ray.get(self._board.read.remote(noted), timeout=POLL_SECONDS)
            except Exception:  # A cluster that is going away ends the driver elsewhere; the log only waits.
                continue
            self._measure(reading)
            for note in reading.notes:
                LOGGER.warning("%s", note)
            noted += len(reading.notes)
            if closed:
                return
            now = time.monotonic()
            if reading.overview and now - last_overview >= OVERVIEW_SECONDS:
                LOGGER.info("search: %s", reading.overview)
                last_overview = last_line = now
            for subject, line in reading.lines.items():
                if line is None:
                    shown.pop(subject, None)
                elif shown.get(subject) != line and now - since.get(subject, 0) >= SECONDS_BETWEEN_LINES:
                    LOGGER.info("%s: %s", subject, line)
                    shown[subject], since[subject], last_line = line, now, now
            if now - last_line > HEARTBEAT_SECONDS and not shown:
                LOGGER.info("still working")
                last_line = now
            if now - last_line > HEARTBEAT_SECONDS:
                for subject, line in shown.items():
                    LOGGER.info("%s: still %s (%.0f s)", subject, line, now - since[subject])
                last_line = now

    def _measure(self, reading: Reading) -> None:
        for state in TRIAL_STATES:
            self._gauges.set(TRIALS, reading.trials[state], state=state)
        self._gauges.set(ACCELERATOR_HOURS, reading.accelerator_hours)
