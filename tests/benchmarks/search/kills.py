"""Does a search with rungs whose driver is killed at random moments come to the same end as an undisturbed one?

    python -m tests.benchmarks.search.kills [--kills 5] [--seed 0] [--json FILE]

Both run jobs/configs/tiny.yaml with two learning rates and two rungs, each in a storage of its own. SIGKILL leaves
the driver no time for anything; Ray's processes, which it started, end some seconds later by themselves, and the next
driver waits until the lease of the one before has run out.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shortened_llm.records import Experiment, accelerator_seconds, from_json
from shortened_llm.reporting.rows import best_of_each_target
from tests.ray.processes import end_processes_of

EARLIEST = 15.0
"""Seconds after its start at which a driver is killed first."""
SEARCH = [
    sys.executable, "-m", "jobs.search", "jobs/configs/tiny.yaml", "--experiment", "kills", "--search.ratios", "[0.25]",
    "--search.rungs", "[0.5, 1.0]", "--retraining.tokens", "16384", "--resources.workers", "1",
    "--retraining.cpt.learning_rate", "[3e-4, 1e-3]", "--retraining.cpt.warmup_steps", "2",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What a search came to."""

    losses: dict[str, float]
    """Search loss of every trial, by its name."""
    tokens: dict[str, int]
    """Trained on by every trial, by its name; what a longer one took over from a shorter one counts in both."""
    chosen: tuple[str, ...]
    """The best of each target."""
    accelerator_seconds: float
    """All trials, each part once."""
    seconds: float
    """Wall time, all drivers together."""


def search(storage: Path, temporary: Path, kill_after: Sequence[float]) -> tuple[End, list[str]]:
    """Run the search; kill its first drivers so many seconds after each has started. Returns what each was doing."""
    environment = {**os.environ, "RAY_TMPDIR": str(temporary), "RAY_ADDRESS": "", "HF_HUB_OFFLINE": "1"}
    temporary.mkdir()
    started, doing = time.monotonic(), []
    for number, limit in enumerate([*kill_after, None]):
        log = storage.parent / f"{storage.name}-{number}.log"
        with log.open("wb") as file:
            driver = subprocess.Popen(
                [*SEARCH, "--storage.url", str(storage)], env=environment, stdout=file, stderr=file
            )
            try:
                code = driver.wait(limit)
                if code != 0:
                    raise RuntimeError(f"the search ended with exit code {code}: {log.read_text()[-2000:]}")
                break
            except subprocess.TimeoutExpired:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                doing.append(f"after {limit:.0f} s: {log.read_text().splitlines()[-1:]}")
            finally:
                end_processes_of(str(temporary))
    return _end(storage, time.monotonic() - started), doing


def _end(storage: Path, seconds: float) -> End:
    report = storage / "experiments/kills/report/trials.json"
    trials = from_json(Experiment, report.read_text()).trials
    results = {trial.spec.name: trial.result for trial in trials if trial.result}
    objectives = {trial.spec.name: trial.spec.objective for trial in trials}
    return End(
        losses={name: objectives[name].loss(result.after) for name, result in results.items()},
        tokens={name: result.tokens for name, result in results.items()},
        chosen=tuple(trial.spec.name for trial in best_of_each_target(trials).values()),
        accelerator_seconds=accelerator_seconds(run for result in results.values() for run in result.runs),
        seconds=seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    drawn = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="k_", dir="/tmp") as directory:  # Ray's sockets have short paths
        place = Path(directory)
        undisturbed, _ = search(place / "undisturbed", place / "a", [])
        # A search goes on where it was: moments within a third of its time hit all parts of it.
        moments = [drawn.uniform(EARLIEST, undisturbed.seconds / 3) for _ in range(options.kills)]
        disturbed, doing = search(place / "disturbed", place / "b", moments)
    for line in doing:
        print(f"killed {line}")
    losses = disturbed.losses
    difference = max(abs(loss - losses.get(name, math.inf)) for name, loss in undisturbed.losses.items())
    rows = {
        "kills": (0, len(doing)),
        "trials": (len(undisturbed.losses), len(disturbed.losses)),
        "tokens of all trials": (sum(undisturbed.tokens.values()), sum(disturbed.tokens.values())),
        "accelerator-seconds": (round(undisturbed.accelerator_seconds), round(disturbed.accelerator_seconds)),
        "wall seconds": (round(undisturbed.seconds), round(disturbed.seconds)),
    }
    print(f"{'':<22}{'undisturbed':>14}{'killed':>10}")
    for name, values in rows.items():
        print(f"{name:<22}{values[0]:>14,}{values[1]:>10,}")
    print(f"chosen: {', '.join(disturbed.chosen)}; largest difference of a loss: {difference:.2g}")
    same = undisturbed.tokens == disturbed.tokens and undisturbed.chosen == disturbed.chosen
    print("trials, tokens and choice are the same" if same else "trials, tokens or choice DIFFER")
    if options.json:
        figures = {"undisturbed": asdict(undisturbed), "killed": asdict(disturbed), "moments": moments, "same": same}
        options.json.write_text(json.dumps(figures, indent=2))
    sys.exit(0 if same and len(doing) == options.kills else 1)


if __name__ == "__main__":
    main()
