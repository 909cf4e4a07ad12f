"""Width pruning of SmolLM2-135M, without retraining: `python -m tests.benchmarks.width`.

For each criterion: seconds and peak memory of its scores, streamed block by block, beside a loaded model with hooks or
gradients; and the perplexity of held-out text at 20 % fewer block parameters, beside blocks and sub-layers at the same
size. 16 x 128 calibration tokens of wiki, float32. Memory is anonymous pages above what the process held before; each
measurement has a process of its own. Needs `python -m jobs.assets demo`, no Ray; about a quarter of an hour on 2 cores.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from shortened_llm.criteria.ppl import ppl_scores
from shortened_llm.criteria.width import WIDTH_CRITERIA
from shortened_llm.criteria.width.criterion import WidthMeasured
from shortened_llm.models.axes import axes_of, widths_of
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.cpu import fair_threads
from shortened_llm.models.directory import load_tokenizer
from shortened_llm.models.load import load_model
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import size_of, view_config
from shortened_llm.pruning.width import narrow
from shortened_llm.records import (
    ModelRef,
    Narrowing,
    PruneUnit,
    Target,
    Transform,
    WidthScores,
    packed,
    removal,
)
from shortened_llm.scoring.measure import MEASUREMENTS, Inputs
from shortened_llm.scoring.one_pass import NLL, walk_statistics
from tests.benchmarks.peak_memory import PeakMemory
from tests.conftest import reference_to

ASSETS = Path("~/.cache/shortened_llm/assets").expanduser()
SHARE = 0.2
"""Of the blocks' parameters."""
LENGTH, CALIBRATION, HELD_OUT = 128, 16, 64
PROTECT_FIRST, PROTECT_LAST = 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--model", type=Path, default=ASSETS / "smollm2-135m-instruct", help="directory")
    flags = parser.parse_args()
    figures: dict[str, dict] = {"cost": {}, "perplexity": {}}
    print(f"{'scores':<24} {'seconds':>8} {'peak MiB':>9} {'loaded: seconds':>16} {'peak MiB':>9}", flush=True)
    for criterion, whole in (("flap", loaded_inputs), ("taylor", loaded_gradients), ("magnitude", loaded_weights)):
        streamed, loaded = (
            alone(measured_cost, flags.model, way) for way in (partial(streamed_scores, criterion), whole)
        )
        figures["cost"][criterion] = {"streamed": streamed, "loaded": loaded}
        cells = [
            f"{one['seconds']:>{width}.1f} {one['bytes'] / 2**20:>9.0f}" for one, width in ((streamed, 8), (loaded, 16))
        ]
        print(f"{criterion:<24} {' '.join(cells)}", flush=True)
    print(f"\n{'20 % of block parameters':<36} {'parameters':>11} {'wiki + c4':>10}", flush=True)
    for title, plan in plans().items():
        found = alone(perplexity_of, flags.model, plan)
        figures["perplexity"][title] = found
        print(f"{title:<36} {found['parameters']:>11,} {found['perplexity']:>10.1f}", flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=2))


Plan = Callable[[ModelRef], tuple[Transform, ...]]


def plans() -> dict[str, Plan]:
    """What is compared, by name."""
    found: dict[str, Plan] = {"dense": nothing}
    for criterion in WIDTH_CRITERIA:
        found[f"{criterion}, channels"] = partial(narrowed, criterion, "mlp", "uniform")
    found["flap, channels, over all blocks"] = partial(narrowed, "flap", "mlp", "global")
    found["flap, heads too, over all blocks"] = partial(narrowed, "flap", "both", "global")
    found["taylor, heads too"] = partial(narrowed, "taylor", "both", "uniform")
    return found | {"ppl, blocks": partial(shortened, "block"), "ppl, sub-layers": partial(shortened, "sublayer")}


def alone(work: Callable[..., dict], *arguments: object) -> dict:
    """What `work` returns, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare) as process:
        return process.submit(work, *arguments).result()


def prepare() -> None:
    torch.set_num_threads(fair_threads(1))


def measured_cost(directory: Path, way: Callable[[ModelRef, torch.Tensor], object]) -> dict:
    ref = reference_to(directory)
    tokens = text_of(ref, "wiki", CALIBRATION)
    started = time.perf_counter()
    with PeakMemory() as memory:
        way(ref, tokens)
    return {"seconds": time.perf_counter() - started, "bytes": memory.host_bytes}


def text_of(ref: ModelRef, name: str, sequences: int, *, last: bool = False) -> torch.Tensor:
    """Sequences from the beginning or the end of a text, [sequences, length]."""
    lines = (ASSETS / "texts" / f"{name}.jsonl").read_text().splitlines()
    tokenizer, needed, ids = load_tokenizer(Path(ref.url)), sequences * LENGTH, list[int]()
    for line in reversed(lines) if last else lines:
        ids += tokenizer(json.loads(line)["text"])["input_ids"]
        if len(ids) >= needed:
            break
    return torch.tensor(ids[:needed]).view(sequences, LENGTH)


def streamed_scores(criterion: str, ref: ModelRef, tokens: torch.Tensor) -> WidthScores:
    row, widths, streamed = WIDTH_CRITERIA[criterion], widths_of(view_config(ref)), StreamedModel.open(ref, "float32")
    given = Inputs(
        streamed=streamed, tokens=tokens, options=row.options(), unit="width", protected=(), num_removed=0,
        memory_gib=None,
    )  # fmt: skip
    values = MEASUREMENTS[row.measured](given) if row.measured else np.arange(streamed.num_blocks)
    measured = WidthMeasured(values=values, groups=widths.groups, channels=widths.channels, options=row.options())
    groups, channels = row.reduce(measured)
    return WidthScores(
        criterion=criterion,
        groups=tuple(map(packed, groups.tolist())),
        channels=tuple(map(packed, channels.tolist())),
        narrowing=Narrowing(parts="mlp", allocation="uniform", round_to=1),
        protocol="",
        fingerprint="",
    )


@torch.inference_mode()
def loaded_inputs(ref: ModelRef, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Sums of squares of what the output projections read, by hooks in a loaded model."""
    model = load_model(ref, "float32")
    row, found = axes_of(model.config), list[torch.Tensor]()
    assert not isinstance(row.groups, str)
    for block in find_blocks(model):
        for output in (row.groups[-1], row.channels[-1]):
            block.get_submodule(output.tensor.removesuffix(".weight")).register_forward_pre_hook(
                lambda _, inputs: found.append(inputs[0].double().square().sum(dim=(0, 1)))
            )
    model(input_ids=tokens, use_cache=False)
    return found


def loaded_gradients(ref: ModelRef, tokens: torch.Tensor) -> None:
    """Gradients of a loaded model, over the same tokens two sequences at a time."""
    model = load_model(ref, "float32")
    for part in tokens.split(2):
        logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
        F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()).backward()


def loaded_weights(ref: ModelRef, tokens: torch.Tensor) -> list[float]:
    model = load_model(ref, "float32")
    return [weight.detach().double().square().sum().item() for weight in model.parameters()]


def target_of(ref: ModelRef) -> Target:
    size = size_of(view_config(ref), "float32")
    return Target(of="parameters", ratio=SHARE * sum(size.block_parameters) / size.without(()).parameters)


def nothing(ref: ModelRef) -> tuple[Transform, ...]:
    return ()


def narrowed(criterion: str, parts: str, allocation: str, ref: ModelRef) -> tuple[Transform, ...]:
    scores = streamed_scores(criterion, ref, text_of(ref, "wiki", CALIBRATION))
    narrowing = Narrowing(parts=parts, allocation=allocation, round_to=1)  # type: ignore[arg-type]
    given = WidthScores(
        criterion=criterion, groups=scores.groups, channels=scores.channels, narrowing=narrowing, protocol="",
        fingerprint="", is_standardised=WIDTH_CRITERIA[criterion].is_standardised,
    )  # fmt: skip
    return (narrow(given, target_of(ref), size_of(view_config(ref), "float32")),)


def shortened(unit: PruneUnit, ref: ModelRef) -> tuple[Transform, ...]:
    """What scores lowest by ppl, until the target is met; the first and last blocks stay."""
    streamed, size = StreamedModel.open(ref, "float32"), size_of(view_config(ref), "float32")
    nll = walk_statistics(streamed, text_of(ref, "wiki", CALIBRATION), [NLL], unit=unit, memory_gib=None)[NLL]
    per_block, needed = len(size.of_units(unit)) // streamed.num_blocks, SHARE * sum(size.block_parameters)
    free = range(PROTECT_FIRST * per_block, (streamed.num_blocks - PROTECT_LAST) * per_block)
    removed: list[int] = []
    for one in ppl_scores(nll).order:
        if one in free and sum(size.of_units(unit)[other] for other in removed) < needed:
            removed.append(one)
    return removal(unit, removed, streamed.num_blocks)


def perplexity_of(directory: Path, plan: Plan) -> dict:
    """Over held-out sequences of wiki and c4 together."""
    ref = reference_to(directory)
    transforms = plan(ref)
    model = load_model(ref.view(transforms), "float32")
    losses: list[float] = []
    for name in ("wiki", "c4"):
        for part in text_of(ref, name, HELD_OUT, last=True).split(8):
            with torch.inference_mode():
                logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
            losses.append(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()).item())
    parameters = size_of(view_config(ref), "float32").after(transforms).parameters
    return {"perplexity": math.exp(float(np.mean(losses))), "parameters": parameters}


if __name__ == "__main__":
    main()
