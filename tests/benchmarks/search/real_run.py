"""The simulation against a real search: `python -m tests.benchmarks.search.real_run EXPERIMENT [--json FILE]`.

Costs are means over half of the trials, every second one and then the first half, in the order in which they began:
seconds per operation, what a trial takes beside its training, and the time between a trial's end and the next one's
beginning. With these and the trials' scores the whole search is simulated, and compared with the time from its first
trial's beginning to its last one's end. EXPERIMENT is the directory <storage>/experiments/<name> of a search of three
trials or more that ran without a break, has no controls, one selection text, and one training run a trial.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean

from transformers import AutoConfig

from shortened_llm.errors import BadInputError
from shortened_llm.records import Recipe
from shortened_llm.records.training import TrainingPoint, taken_over
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.search.estimate import Shapes, run_work
from shortened_llm.search.stored.experiment import read_experiment
from shortened_llm.storage.layout import BEGUN, CONFIG, TRIALS, record_url
from tests.benchmarks.search.grid import Point
from tests.benchmarks.search.replay import Grid, ours
from tests.benchmarks.search.simulation import Costs, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A trial of a real search."""

    point: Point
    begun: float
    """Seconds since the epoch, as `ended`."""
    ended: float
    seconds: float
    training_seconds: float
    """Without those of the rung below, as `flops`."""
    flops: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    directory = arguments.experiment.resolve()
    try:
        ran = read_run(directory)
    except (BadInputError, FileNotFoundError) as error:
        parser.error(str(error))
    slots = json.loads((directory / CONFIG).read_text())["search"]["max_concurrent_trials"]
    halves = {"every second trial": ran[::2], "the first half": ran[: (len(ran) + 1) // 2]}
    figures = {f"costs from {name}": compare(ran, half, slots) for name, half in halves.items()}
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{value:.4g} {unit}" for unit, value in found.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def compare(ran: Sequence[Ran], known: Sequence[Ran], slots: int) -> dict[str, float]:
    """The whole search simulated with the costs of some of its trials, and as it was."""
    grid = Grid([one.point for one in ran])
    flops = {(one.point.candidate, one.point.rung): one.flops for one in ran}
    speed = sum(one.flops for one in known) / sum(one.training_seconds for one in known)
    beside = mean(one.seconds - one.training_seconds for one in known)
    ends = [one.ended for one in ran]
    gap = mean(one.begun - max(end for end in ends if end <= one.begun) for one in known if one.begun >= min(ends))
    ask = ours(grid, grid.candidates)  # they are numbered in the order in which the search has them
    costs = Costs(start=beside, handover=gap)
    simulated, _ = simulate(grid, ask, lambda trial: [flops[trial] / speed], costs, slots)
    real = max(ends) - min(one.begun for one in ran)
    return {
        "trials": len(ran), "of them known": len(known), "GFLOP/s": speed / 1e9, "s beside training": beside,
        "s between trials": gap, "min simulated": simulated / 60, "min real": real / 60,
        "% difference": 100 * (simulated / real - 1),
    }  # fmt: skip


def read_run(directory: Path) -> list[Ran]:
    """The trials of a search, in the order in which they began.

    Raises:
        BadInputError: it is no such search as the module describes.
    """
    experiment, storage = read_experiment(str(directory)), str(directory.parent.parent)
    shapes = Shapes(AutoConfig.from_pretrained(experiment.dense_url), "float32")
    numbers: dict[str, int] = {}
    for trial in experiment.trials:
        numbers.setdefault(trial.spec.candidate or trial.spec.fingerprint, len(numbers))
    seen: set[TrainingPoint] = set()
    last: dict[int, Recipe] = {}
    found = []
    for trial in sorted(experiment.trials, key=lambda trial: created(str(directory), BEGUN, trial.spec.fingerprint)):
        spec, result = trial.spec, trial.result
        if result is None or spec.control or len(result.runs) != 1 or len(result.after.perplexity) != 1:
            raise BadInputError(f"EXPERIMENT: {spec.name} has not ended, is a control, or has several runs or texts")
        (run,), (recipe,), (score,) = result.runs, spec.recipes, result.after.perplexity
        candidate = numbers[spec.candidate or spec.fingerprint]
        first, before = stable_end(last[candidate]) if candidate in last else 0, taken_over(run, seen)
        last[candidate] = recipe
        seen.update(run.history)
        point = Point(
            candidate=candidate, target=spec.plan.size.blocks, name=spec.name, rung=spec.rung, tokens=result.tokens,
            seconds=run.seconds, document_nll=score.document_nll, document_predictions=score.document_predictions,
        )  # fmt: skip
        found.append(
            Ran(
                point=point, begun=created(str(directory), BEGUN, spec.fingerprint),
                ended=created(storage, TRIALS, spec.fingerprint), seconds=result.seconds,
                training_seconds=run.seconds - (before.seconds if before else 0.0),
                flops=run_work(recipe, first, shapes.of(spec.shapes[0], recipe)).flops,
            )
        )  # fmt: skip
    return found


def created(storage: str, kind: str, fingerprint: str) -> float:
    """When a record was written, in seconds since the epoch."""
    envelope = json.loads(Path(record_url(storage, kind, fingerprint)).read_text())
    return datetime.fromisoformat(envelope["created"]).timestamp()


if __name__ == "__main__":
    main()
