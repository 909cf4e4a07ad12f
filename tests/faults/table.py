"""What each drill cost, as one line of a table; with FAULTS_JSON set, as JSON lines in that file too."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "FAULTS_JSON"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    fault: str
    tokens_lost: int
    """Trained, and trained again."""
    trials_repeated: int
    """Finished, and trained again."""
    seconds: float
    """From the fault to the first step after it, or to what the drill waits for."""


DRILLS: list[Drill] = []


def record(fault: str, *, tokens_lost: int, seconds: float, trials_repeated: int = 0) -> None:
    """Add a drill to the table."""
    drill = Drill(fault=fault, tokens_lost=tokens_lost, trials_repeated=trials_repeated, seconds=round(seconds, 1))
    DRILLS.append(drill)
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as stream:
            stream.write(json.dumps(asdict(drill)) + "\n")


def lines() -> list[str]:
    """The table as text."""
    width = max((len(drill.fault) for drill in DRILLS), default=0)
    head = f"{'fault':<{width}}  tokens lost  trials repeated  seconds to recover"
    rows = [
        f"{drill.fault:<{width}}  {drill.tokens_lost:>11,}  {drill.trials_repeated:>15}  {drill.seconds:>18.1f}"
        for drill in DRILLS
    ]
    return [head, *rows]
