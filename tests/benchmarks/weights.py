"""Single weights of SmolLM2-135M go, without retraining: `python -m tests.benchmarks.weights`.

For each criterion, allocation, refinement and compensation: seconds and peak memory of the pass over the blocks, and
the perplexity of held-out text, at half of the blocks' weights and at 2:4; 16 x 128 tokens of wiki, float32. Then of
all matrices of every third block, on what they read in the dense model: in how many the losses of updates are in the
order that they must be in. Then the joint update for many rows at a time against a loop over rows, and seconds and peak
memory of one block of a 7B shape (random weights and inputs), where the joint update is timed on a few rows and scaled.
Memory is anonymous pages above what the process held before; each measurement has a process of its own. Needs `python
-m jobs.assets demo`, no Ray; an hour and a half on 2 cores.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from shortened_llm.config import WeightPruning
from shortened_llm.criteria.weight import WEIGHT_CRITERIA
from shortened_llm.models.linears import as_matrix, linear_layers
from shortened_llm.models.load import load_model
from shortened_llm.models.moments import Moments
from shortened_llm.models.stream import StreamedModel
from shortened_llm.pruning.inputs import BlockInputs
from shortened_llm.pruning.weight.hessian import damped_inverse
from shortened_llm.pruning.weight.job import WeightsJob
from shortened_llm.pruning.weight.joint import joint_update
from shortened_llm.pruning.weight.masks import MASKERS, Layer
from shortened_llm.pruning.weight.mrp import mrp
from shortened_llm.pruning.weight.pattern import parse_pattern
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.search.memory import layerwise_memory
from shortened_llm.storage.store import Store
from tests.benchmarks.peak_memory import PeakMemory
from tests.benchmarks.small_model import CALIBRATION, LENGTH, MODEL, alone, calibration_rows, perplexity, text_of
from tests.conftest import reference_to

POOLED = {"refine": "barber", "barber": {"rate": 0.1, "granularity": "block"}}
CASES: Mapping[str, list[tuple[str, dict]]] = {
    "unstructured": [
        ("magnitude", {}),
        ("magnitude", {"refine": "dsnot"}),
        ("magnitude", POOLED),
        ("wanda", {}),
        ("wanda", {"allocation": "owl"}),
        ("wanda", {"allocation": "alpha"}),
        ("wanda", {"refine": "dsnot"}),
        ("wanda", POOLED),
        ("wanda", {"refit": {}}),
        ("sparsegpt", {}),
        ("sparsegpt", {"refit": {}}),
        ("mrp", {"mrp": {"update": "single"}}),
        ("mrp", {}),
    ],
    "2:4": [
        ("wanda", {}),
        ("wanda", {"refine": "dsnot"}),
        ("wanda", {"refine": "barber", "barber": {"rate": 0.1}}),
        ("sparsegpt", {}),
        ("sparsegpt", {"refit": {}}),
        ("mrp", {"mrp": {"update": "single"}}),
        ("mrp", {}),
        ("mrp", {"mrp": {"mask": "joint", "update": "single"}}),
        ("mrp", {"mrp": {"mask": "joint"}}),
    ],
}
HIDDEN, CHANNELS, TOKENS = 4096, 11_008, 4096
BLOCK = {(HIDDEN, HIDDEN): 4, (CHANNELS, HIDDEN): 2, (HIDDEN, CHANNELS): 1}
"""Matrices of one block of a 7B shape, and how many it has of each."""
TIMED_ROWS = 8
ORDERED_BLOCKS = 3
"""The losses of every so many-th block are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--model", type=Path, default=MODEL, help="directory")
    flags = parser.parse_args()
    figures: dict[str, dict] = {"quality": {}}
    print(f"dense: perplexity {alone(dense, flags.model)['perplexity']:.1f} on wiki + c4", flush=True)
    print(f"{'half of the weights':<60} {'seconds':>8} {'peak MiB':>9} {'estimated':>9}", end=" ")
    print(f"{'exchanged':>10} {'wiki + c4':>10}", flush=True)
    for pattern, cases in CASES.items():
        for criterion, settings in cases:
            found = alone(pruned, flags.model, pattern, criterion, settings)
            title = ", ".join([pattern, criterion, *_words(settings)])
            figures["quality"][title] = found
            print(
                f"{title:<60} {found['seconds']:>8.1f} {found['bytes'] / 2**20:>9.0f} "
                f"{found['estimated'] / 2**20:>9.0f} {found['exchanged']:>10,} {found['perplexity']:>10.1f}",
                flush=True,
            )
    found = figures["order"] = alone(order_of_losses, flags.model)
    print("\nmatrices in which the loss on calibration text is no larger:", flush=True)
    for name, number in found["holds"].items():
        print(f"  {name:<56} {number:>4} of {found['matrices']}", flush=True)
    found = figures["rows"] = alone(many_rows)
    print(f"\njoint update of 1,536 x 576: {found['together']:.2f} s, row by row {found['loop']:.2f} s", flush=True)
    print(f"\n{'one block of a 7B shape':<60} {'seconds':>8} {'peak MiB':>9}", flush=True)
    for name in (*WEIGHT_CRITERIA, "joint update"):
        found = alone(large_block, name)
        figures.setdefault("block", {})[name] = found
        print(f"{name:<60} {found['seconds']:>8.1f} {found['bytes'] / 2**20:>9.0f}", flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=2))


def _words(settings: Mapping[str, object]) -> list[str]:
    """`refine dsnot`, `mask joint`"""
    found = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += [f"{field} {own}" for field, own in value.items()] or [name]
        else:
            found.append(f"{name} {value}")
    return found


def dense(directory: Path) -> dict:
    ref = reference_to(directory)
    return {"perplexity": perplexity(load_model(ref, "float32"), ref)}


def pruned(directory: Path, pattern: str, criterion: str, settings: dict) -> dict:
    ref = reference_to(directory)
    entry = WeightPruning(unit="weight", criteria=(criterion,), pattern=pattern, **settings)
    with TemporaryDirectory() as temporary:
        documents, store = calibration_rows(ref, CALIBRATION, Path(temporary)), Store.at(f"{temporary}/results")
        job = WeightsJob(
            model=ref, transforms=(), recipe=Recipe.of(entry, criterion, parse_pattern(pattern, 0.5)),
            documents=documents, calibration=documents.source, dtype="float32",  # type: ignore[arg-type]
        )  # fmt: skip
        started = time.perf_counter()
        with PeakMemory() as memory:
            job.compute(store, device="cpu", memory_gib=None)
        seconds = time.perf_counter() - started
        transform = job.stored(store)
        assert transform is not None
        model = load_model(ref.view((transform,)), "float32")
    streamed = StreamedModel.open(ref, "float32")
    estimate = layerwise_memory(
        streamed.model, 4, CALIBRATION * LENGTH, is_joint=job.recipe.is_joint, takes_gradients=entry.refine == "barber"
    )
    return {
        "seconds": seconds,
        "bytes": memory.host_bytes,
        "estimated": estimate.peak,
        "exchanged": transform.exchanged or 0,
        "perplexity": perplexity(model, ref),
    }


@torch.no_grad()
def order_of_losses(directory: Path) -> dict:
    """Losses with the damping, of each matrix of some blocks on what it reads in the dense model."""
    ref = reference_to(directory)
    streamed, holds, matrices = StreamedModel.open(ref, "float32"), Counter[str](), 0
    inputs = BlockInputs.of(streamed, text_of(ref, "wiki", CALIBRATION), memory_gib=None, reader="losses")
    free, groups = parse_pattern("unstructured", 0.5), parse_pattern("2:4")
    for index, block in streamed.read_blocks(range(streamed.num_blocks)):
        layers = {} if index % ORDERED_BLOCKS else linear_layers(block)
        moments = inputs.observe(index, block, layers, joint=True) if layers else {}
        for name, module in layers.items():
            weight = as_matrix(module, module.get_parameter("weight")).double()
            layer = Layer(weight=weight, moments=moments[name], num_sequences=CALIBRATION, pattern=free)
            hessian = layer.hessian
            damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))

            def loss(new: torch.Tensor, weight: torch.Tensor = weight, damped: torch.Tensor = damped) -> float:
                return float(((new - weight) @ damped * (new - weight)).sum())

            new, kept = MASKERS["sparsegpt"](layer, WEIGHT_CRITERIA["sparsegpt"].options())
            joint = loss(joint_update(weight, kept, hessian, damping=0.01))
            holds["joint update, by sparsegpt's, at its mask"] += joint <= loss(new)
            holds["joint update, by zeroing, at sparsegpt's mask"] += joint <= loss(weight * kept)
            holds["sparsegpt's update, by zeroing"] += loss(new) <= loss(weight * kept)
            for mask, pattern in (("single", free), ("single", groups), ("joint", groups)):
                single, best = (
                    loss(mrp(weight, hessian, pattern, mask=mask, update=update, damping=0.01)[0])  # type: ignore[arg-type]
                    for update in ("single", "joint")
                )
                holds[f"mrp, {mask} mask, {'2:4' if pattern.of else 'half'}: joint update, by the single"] += (
                    best <= single
                )
            matrices += 1
        inputs.pass_through(index, block)
    return {"matrices": matrices, "holds": dict(holds)}


def many_rows() -> dict:
    """Seconds of the joint update of a matrix, and of the same row by row."""
    generator = torch.Generator().manual_seed(0)
    weight, read = (torch.randn((size, 576), generator=generator).double() for size in (1536, TOKENS))
    hessian, kept = 2 * read.T @ read, parse_pattern("unstructured", 0.5).lowest_in_rows(weight.abs())
    started = time.perf_counter()
    together = joint_update(weight, kept, hessian, damping=0.01)
    between = time.perf_counter()
    inverse, one_by_one = damped_inverse(hessian, 0.01), weight.clone()
    for row, mask in zip(one_by_one, kept, strict=True):
        gone = (~mask).nonzero().flatten()
        row -= torch.linalg.solve(inverse[gone][:, gone], row[gone]) @ inverse[gone]
        row[gone] = 0
    torch.testing.assert_close(together, one_by_one)
    return {"together": between - started, "loop": time.perf_counter() - between}


def large_block(name: str) -> dict:
    total, most = 0.0, 0
    for (outputs, inputs), number in BLOCK.items():
        rows = TIMED_ROWS if name in ("joint update", "mrp") else outputs
        weight = torch.randn((rows, inputs), generator=torch.Generator().manual_seed(1)).double()
        moments = Moments(joint=name == "joint update" or WEIGHT_CRITERIA[name].joint)
        moments.add(torch.randn((1, TOKENS, inputs), generator=torch.Generator().manual_seed(2)))
        layer = Layer(weight=weight, moments=moments, num_sequences=2, pattern=parse_pattern("unstructured", 0.5))
        with PeakMemory() as memory:
            seconds, scaled = _timed(name, layer)
        total += number * (seconds + scaled * (outputs / rows - 1))
        most = max(most, memory.host_bytes)
    return {"seconds": total, "bytes": most}


def _timed(name: str, layer: Layer) -> tuple[float, float]:
    """Seconds, and of these what grows with the rows."""

    def run(weight: torch.Tensor) -> float:
        own = Layer(weight=weight, moments=layer.moments, num_sequences=2, pattern=layer.pattern)
        work: Callable[[], object]
        if name == "joint update":
            kept, hessian = layer.pattern.lowest_in_rows(weight.abs()), own.hessian
            work = lambda: joint_update(weight, kept, hessian, damping=0.01)  # noqa: E731
        else:
            work = lambda: MASKERS[name](own, WEIGHT_CRITERIA[name].options())  # noqa: E731
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    if len(layer.weight) > TIMED_ROWS:
        return run(layer.weight), 0.0
    few = run(layer.weight[: TIMED_ROWS // 2])
    all_rows = run(layer.weight)
    return all_rows, 2 * (all_rows - few)


if __name__ == "__main__":
    main()
