"""What is happening anywhere on the cluster, as log lines of the driver."""

import threading
import time
from types import TracebackType

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shortened_llm.logs import LOGGER

POLL_SECONDS = 2.0
# Of one subject; what changes faster is shown by its latest line.
SECONDS_BETWEEN_LINES = 8.0
# No minute passes in silence.
HEARTBEAT_SECONDS = 30.0


@ray.remote(num_cpus=0)
class _Board:
    """The latest line of each subject."""

    def __init__(self) -> None:
        self._lines: dict[str, str | None] = {}
        self._notes: list[str] = []

    def post(self, subject: str, line: str | None) -> None:
        self._lines[subject] = line

    def lines(self) -> dict[str, str | None]:
        return dict(self._lines)

    def note(self, subject: str, line: str) -> None:
        self._notes.append(f"{subject}: {line}")

    def notes(self, first: int) -> list[str]:
        return self._notes[first:]


class Progress:
    """Posts lines about one subject from any process. Call it with a line; None ends the subject."""

    def __init__(self, board: object, subject: str) -> None:
        self._board, self._subject = board, subject
        self._started: float | None = None

    def __call__(self, line: str | None) -> None:
        self._board.post.remote(self._subject, line)  # type: ignore[attr-defined]

    def note(self, line: str) -> None:
        """Post what must not be missed: unlike a line, it is not replaced by the next."""
        self._board.note.remote(self._subject, line)  # type: ignore[attr-defined]

    def steps(self, done: int, total: int) -> None:
        """Post a count of equal steps, and how long the rest may take; called in one process after each step."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
            self(f"{done}/{total}")
        else:
            self(f"{done}/{total}, {(now - self._started) / (done - 1) * (total - done):.0f} s left")

    def about(self, subject: str) -> "Progress":
        """The same board, another subject."""
        return Progress(self._board, subject)


class ProgressLog:
    """Writes the board's lines to the driver's log while the context lasts."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = _Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
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
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        shown: dict[str, str] = {}
        since: dict[str, float] = {}
        last_line = time.monotonic()
        noted = 0
        closed = False
        while not closed:
            closed = self._closed.wait(POLL_SECONDS)  # once more after the end, for the last notes
            try:
                lines, notes = ray.get(
                    [self._board.lines.remote(), self._board.notes.remote(noted)], timeout=POLL_SECONDS
                )
            except Exception:  # A cluster that is going away ends the driver elsewhere; the log only waits.
                continue
            for note in notes:
                LOGGER.warning("%s", note)
            noted += len(notes)
            if closed:
                return
            now = time.monotonic()
            for subject, line in lines.items():
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
