"""The loss of each step in float32, ours against transformers' `Trainer` with an optimiser of its own making."""

from pathlib import Path

from tests.benchmarks.retraining.ours import with_ours
from tests.benchmarks.retraining.processes import run
from tests.benchmarks.retraining.setup import make_job
from tests.benchmarks.retraining.trainer import with_trainer

STEPS = 20
GOAL = 1e-3


def against_trainer(directory: Path, steps: int | None) -> dict:
    """Same sequences, schedule and hyper-parameters; shorter sequences than elsewhere, since float32 is slow."""
    job = make_job(directory, steps=steps or STEPS, length=128, dtype="float32")
    ours = run(with_ours, job)["losses"]
    theirs = run(with_trainer, job, {}, True)["losses"]
    largest = max(abs(ours[step] - theirs[step]) for step in theirs)
    print(f"{'step':>6}{'ours':>12}{'Trainer':>12}{'difference':>13}")
    for step in sorted(theirs)[:: max(1, len(theirs) // 5)]:
        print(f"{step:>6}{ours[step]:12.6f}{theirs[step]:12.6f}{ours[step] - theirs[step]:13.1e}")
    print(f"largest difference over {len(theirs)} steps: {largest:.1e} nats (goal: at most {GOAL:g})")
    return {"ours": ours, "trainer": theirs, "largest_difference": largest}
