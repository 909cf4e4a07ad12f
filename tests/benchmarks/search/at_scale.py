"""A 7B search on 8, 64 and 1,000 GPUs, simulated: `python -m tests.benchmarks.search.at_scale [--json FILE]`.

The configuration is jobs/configs/llama2_7b.yaml with three methods; its candidates are the 36 that were recorded on the
tiny model, whose losses decide what goes up. Times are a model, not measurements: training from the operations of each
run, the rest from the numbers that are printed first. `real_run.py` compares the same simulation with a real search.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise, product
from pathlib import Path
from statistics import mean

import numpy as np
import yaml
from transformers import LlamaConfig

from shortened_llm.config import parse_config
from shortened_llm.records import BlocksTransform, Recipe
from shortened_llm.retraining.recipe import chains
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.search.estimate import RunShape, Shapes
from shortened_llm.search.forecast import BYTES_OF_TRAINED
from shortened_llm.search.space import shortened
from tests.benchmarks.search.grid import Point, read_points, recorded
from tests.benchmarks.search.replay import Grid, Trial, full_grid, ours
from tests.benchmarks.search.simulation import Costs, Spent, simulate

CONFIG = Path(__file__).parents[3] / "jobs/configs/llama2_7b.yaml"
METHODS = {
    "methods": ["cpt", "lora", "distill"],
    "lora": {"schedule": "wsd", "warmup_steps": 20},
    "distill": {"warmup_steps": 20},
}
CLUSTERS = ((8, 8), (64, 8), (1000, 8), (1000, 64))
"""GPUs, and those of a trial."""
LOSSES_PER_NODE_HOUR = (0.0, 0.05, 0.2)
SEEDS = 20
GPUS_PER_NODE = 8


def number(value: float, unit: str, source: str) -> float:
    found: float = field(default=value, metadata={"unit": unit, "source": source})
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What the simulation knows of machines, with where it is from."""

    peak: float = number(9.89e14, "FLOP/s", "an H100, data sheet")
    utilisation: float = number(
        0.499, "of the peak", "measured: cpt of 1.5 B parameters on one H200 (retraining/README.md); assumed of distill"
    )
    lora_utilisation: float = number(0.40, "of the peak", "measured: 8 B on one H200 (retraining/README.md)")
    boot: float = number(600, "s", "assumed: a node that pulls the image takes many minutes (cluster/README.md)")
    idle: float = number(300, "s", "idle nodes end after five minutes (cluster/README.md)")
    handover: float = number(15, "s", "measured: from a trial's end to the next one's beginning, SmolLM2, 2 cores")
    start: float = number(22, "s", "measured: from a lost node to the next step, tiny model (cluster/README.md)")
    compilation: float = number(60, "s", "assumed: of the blocks, at each start")
    storage: float = number(1e9, "bytes/s", "assumed: of each node, to and from the storage")
    copy: float = number(2e9, "bytes/s", "measured: a worker's checkpoint to memory, SmolLM2 on 2 cores: 1.4 GB, 0.6 s")
    price: float = number(2.5, "per GPU-hour", "assumed")

    def costs(self, shape: RunShape, scored_tokens: int, gpus: int, losses: float) -> Costs:
        """What a trial costs beside its training.

        Args:
            shape: of a run that trains all parameters.
            scored_tokens: of the selection texts.
            gpus: of a trial.
            losses: of a node per hour.
        """
        nodes = gpus // GPUS_PER_NODE
        model, checkpoint = 2.0 * shape.trained_parameters, float(BYTES_OF_TRAINED * shape.trained_parameters)
        forward = scored_tokens * shape.flops_per_token / 3 / (self.utilisation * self.peak)
        return Costs(
            boot=self.boot,
            idle=self.idle,
            handover=self.handover,
            start=self.start + self.compilation,
            load=model / nodes / self.storage,
            restore=checkpoint / nodes / self.storage,
            stall=checkpoint / gpus / self.copy,
            write=checkpoint / nodes / self.storage,
            finish=2 * model / self.storage,  # one worker writes it and reads it back
            evaluate=model / self.storage + forward,
            loss_rate=losses * nodes / 3600,
        )


class Scaled:
    """The recorded candidates as trials of a 7B search; the recorded targets stand for its own, the larger for the
    larger."""

    def __init__(self, grid: Grid) -> None:
        settings = yaml.safe_load(CONFIG.read_text())
        settings["retraining"] |= METHODS
        config = parse_config(settings)
        model = LlamaConfig()  # its defaults are those of 7B
        shapes, training = Shapes(model, "bfloat16"), config.retraining
        self.grid = grid
        self.runs: dict[tuple[int, str], tuple[Recipe, RunShape]] = {}
        """By target and method."""
        targets = sorted(set(grid.targets.values()), reverse=True)
        for target, ratio in zip(targets, config.search.ratios, strict=True):
            view = (BlocksTransform(kept=tuple(range(round((1 - ratio) * model.num_hidden_layers)))),)
            for method in training.methods:
                recipe = next(iter(chains(training, method, training.budget(ratio), None)))[0]
                self.runs[target, method] = recipe, shapes.of(view, recipe)
        self.largest = self.runs[targets[0], "cpt"][1]
        (text,) = config.evaluation.selection.perplexity
        self.scored_tokens = text.max_tokens

    def parts(self, grid: Grid, machines: Machines, gpus: int) -> Callable[[Trial], list[float]]:
        """The training seconds of a trial from each checkpoint to the next, beyond the rung below."""

        def of_trial(trial: Trial) -> list[float]:
            candidate, rung = trial
            method = grid.points[trial].name.split()[2]
            recipe, shape = self.runs[grid.targets[candidate], method]
            utilisation = machines.lora_utilisation if method == "lora" else machines.utilisation
            step = recipe.tokens_per_step * shape.flops_per_token / (gpus * utilisation * machines.peak)
            below = grid.below(rung)
            own = shortened(recipe, rung)
            first = stable_end(shortened(recipe, below)) if below else 0
            often = max(1, own.num_steps // 3)  # as `retraining.checkpoint_tokens` does unless it is given
            saved = {*range(often, own.num_steps, often), stable_end(own), own.num_steps}
            return [step * (end - begin) for begin, end in pairwise([first, *sorted(s for s in saved if s > first)])]

        return of_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    machines, points = Machines(), read_points(recorded("tiny"))
    scaled = Scaled(Grid(points))
    for one in fields(machines):
        print(f"{one.name:<17} {getattr(machines, one.name):>9.4g} {one.metadata['unit']:<12} {one.metadata['source']}")
    print(f"{arguments.seeds} random orders of {len(scaled.grid.candidates)} candidates, rungs {scaled.grid.rungs}")
    print("What goes up is decided by losses that were recorded on the tiny model; hours are a model.")
    print("losses: of a node per hour; use: training that counted, of GPUs x hours; behind it: of the GPU-hours")
    columns = {"gpus": ">4", "of_trial": ">7", "search": "<6", "losses": ">6g", "hours": ">6.1f", "paid": ">9.0f",
               "cost": ">6.0f", "use": ">6.1%", "training": ">7.1%", "starting": ">6.1%", "checkpoints": ">6.1%",
               "finishing": ">7.1%", "idle": ">6.1%", "lost": ">6.1%"}  # fmt: skip
    print("GPUs a trial search losses  hours GPU-hours   cost    use counted starts saving export+   idle   lost")
    figures = []
    for (gpus, of_trial), losses, search in product(CLUSTERS, LOSSES_PER_NODE_HOUR, ("grid", "rungs")):
        figures.append(scenario(scaled, points, machines, gpus, of_trial, search, losses, arguments.seeds))
        print(*(f"{figures[-1][name]:{how}}" for name, how in columns.items()), flush=True)
    if arguments.json:
        assumed = {one.name: getattr(machines, one.name) for one in fields(machines)}
        arguments.json.write_text(json.dumps({"machines": assumed, "searches": figures}, indent=1) + "\n")


def scenario(
    scaled: Scaled,
    points: Sequence[Point],
    machines: Machines,
    gpus: int,
    of_trial: int,
    search: str,
    losses: float,
    seeds: int,
) -> dict[str, float | str]:
    """Means over random orders of the candidates and random losses."""
    grid = Grid([point for point in points if search == "rungs" or point.rung == 1])
    costs = machines.costs(scaled.largest, scaled.scored_tokens, of_trial, losses)
    slots, parts = gpus // of_trial, scaled.parts(grid, machines, of_trial)
    makespans, spent = [], Spent()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(grid.candidates).tolist()
        ask = ours(grid, order) if search == "rungs" else full_grid(order)
        makespan, one = simulate(grid, ask, parts, costs, slots, rng)
        makespans.append(makespan)
        spent += one
    hours, paid = mean(makespans) / 3600, spent.total * of_trial / seeds / 3600
    shares = {one.name: getattr(spent, one.name) / spent.total for one in fields(spent)}
    return {
        "gpus": gpus, "of_trial": of_trial, "search": search, "losses": losses, "hours": hours, "paid": paid,
        "cost": paid * machines.price, "use": shares["training"] * paid / (gpus * hours), **shares,
    }  # fmt: skip


if __name__ == "__main__":
    main()
