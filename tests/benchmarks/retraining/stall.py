"""What checkpoints cost: the time that the loop waits for one, and what writing in the background takes from it."""

from pathlib import Path

from tests.benchmarks.retraining.ours import with_ours
from tests.benchmarks.retraining.processes import run
from tests.benchmarks.retraining.setup import make_job

# Behind the last checkpoint the loop goes on for as long as behind the others.
STEPS, INTERVAL = 20, 5
WARM_UP = 2
GOAL = 0.02


def of_checkpoints(directory: Path, steps: int | None) -> dict:
    """The same run in two processes, with a checkpoint every five steps and with none."""
    steps = max(steps or STEPS, INTERVAL + WARM_UP)
    job = make_job(directory / "with", steps=steps, micro_batch=2, checkpoint_steps=INTERVAL)
    without = run(with_ours, make_job(directory / "without", steps=steps, micro_batch=2), processes=2)
    saving = run(with_ours, job, processes=2)
    seconds = {
        name: figures["finished"] - figures["ends"][WARM_UP]
        for name, figures in (("with", saving), ("without", without))
    }
    interval = INTERVAL * (without["ends"][steps] - without["ends"][WARM_UP]) / (steps - WARM_UP)
    stalls = list(saving["stalls"].values())
    print(f"{INTERVAL * job.recipe.tokens_per_step:,} tokens take {interval:.2f} s without checkpoints")
    print(
        f"each of {len(stalls)} checkpoints holds up the loop for "
        + ", ".join(f"{stall:.3f} s" for stall in stalls)
        + f" (the first one also allocates its buffers): {sum(stalls) / len(stalls) / interval:.2%} of the interval on "
        f"average, {stalls[-1] / interval:.2%} for the last (goal: at most {GOAL:.0%})"
    )
    extra = (seconds["with"] - seconds["without"]) / (len(stalls) - 1)  # both save at the end
    print(
        f"steps {WARM_UP + 1} to {steps} with the last checkpoint's end: {seconds['with']:.2f} s with, "
        f"{seconds['without']:.2f} s without checkpoints: {extra:.2f} s ({extra / interval:.1%}) for each, writing on "
        "the same cores included"
    )
    return {"interval_seconds": interval, "stall_seconds": stalls, "seconds": seconds}
