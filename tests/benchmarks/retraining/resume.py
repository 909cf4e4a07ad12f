"""A run that goes from two workers to one and back to two, against the same run without a stop."""

from pathlib import Path

from tests.benchmarks.retraining.ours import with_ours
from tests.benchmarks.retraining.processes import run
from tests.benchmarks.retraining.setup import TINY, make_job

STEPS, INTERVAL = 12, 4
GOAL = 1e-5


def with_other_workers(directory: Path, steps: int | None) -> dict:
    """Tiny model, float32: stopped after steps 4 and 8."""
    job = make_job(directory, TINY, steps=STEPS, micro_batch=1, dtype="float32", checkpoint_steps=INTERVAL)
    straight = run(with_ours, job, None, directory / "two", processes=2)["losses"]
    first_stop, second_stop = directory / "two" / str(INTERVAL), directory / "one" / str(2 * INTERVAL)
    one = run(with_ours, job, None, directory / "one", first_stop, processes=1)["losses"]
    two = run(with_ours, job, None, None, second_stop, processes=2)["losses"]
    resumed = {step: one[step] for step in one if step <= 2 * INTERVAL} | two
    assert sorted(resumed) == list(range(INTERVAL + 1, STEPS + 1))
    largest = max(abs(resumed[step] / straight[step] - 1) for step in resumed)
    print(
        f"losses of steps {INTERVAL + 1} to {STEPS}, 2 -> 1 -> 2 workers: relative difference {largest:.1e} at most "
        f"(goal: at most {GOAL:g}); the last one {two[STEPS]:.6f} against {straight[STEPS]:.6f}"
    )
    return {"straight": straight, "resumed": resumed, "largest_difference": largest}
