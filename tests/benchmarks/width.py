"""Width pruning of SmolLM2-135M, without retraining: `python -m tests.benchmarks.width`.

For each criterion: seconds and peak memory of its scores, streamed block by block, beside a loaded model with hooks or
gradients; and the perplexity of held-out text at 20 % fewer block parameters, beside blocks and sub-layers at the same
size. Then what bias and refit give to the channels that flap chooses: seconds, the error of the down projections on
held-out text by that of the weights as they were, and perplexity before and after 20,480 tokens of continued
pretraining. 16 x 128 calibration tokens of wiki, float32. Memory is anonymous pages above what the process held before;
each measurement has a process of its own. Needs `python -m jobs.assets demo`, no Ray; half an hour on 2 cores.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from shortened_llm.config import Refit
from shortened_llm.criteria.ppl import ppl_scores
from shortened_llm.criteria.width import WIDTH_CRITERIA
from shortened_llm.criteria.width.criterion import WidthMeasured
from shortened_llm.models.axes import axes_of, widths_of
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.load import load_model
from shortened_llm.models.moments import Moments, layer_of, observed
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import size_of, view_config, view_files
from shortened_llm.models.walk import BlockWalk
from shortened_llm.pruning.compensation import CompensationJob
from shortened_llm.pruning.refit import error
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
from shortened_llm.storage.store import Store
from tests.benchmarks.peak_memory import PeakMemory
from tests.benchmarks.small_model import (
    CALIBRATION,
    HELD_OUT,
    LENGTH,
    MODEL,
    alone,
    calibration_rows,
    perplexity,
    text_of,
)
from tests.conftest import reference_to

SHARE = 0.2
"""Of the blocks' parameters."""
TRAINED, SEQUENCES_PER_STEP, LEARNING_RATE = 20_480, 8, 1e-4
COMPENSATIONS: dict[str, tuple[Refit | None, bool, bool, int]] = {
    "as they were": (None, False, True, CALIBRATION),
    "bias": (None, True, False, CALIBRATION),
    "refit": (Refit(), False, True, CALIBRATION),
    "refit and bias": (Refit(), True, False, CALIBRATION),
    "refit, on 8 times the tokens": (Refit(), False, True, 8 * CALIBRATION),
}
"""Refit, bias, whether the model is trained on, calibration sequences."""
PROTECT_FIRST, PROTECT_LAST = 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--model", type=Path, default=MODEL, help="directory")
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
    print(f"\n{'channels by flap':<36} {'seconds':>8} {'layer error':>12} {'worst':>6} {'wiki + c4':>10}", flush=True)
    for title, options in COMPENSATIONS.items():
        found = alone(compensation_of, flags.model, *options)
        figures.setdefault("compensation", {})[title] = found
        cells = f"{found['seconds']:>8.1f} {found['error']:>12.2f} {found['worst']:>6.2f} {found['perplexity']:>10.1f}"
        if "retrained" in found:
            cells += f", after {TRAINED:,} tokens {found['retrained']:.1f}"
        print(f"{title:<36} {cells}", flush=True)
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


def measured_cost(directory: Path, way: Callable[[ModelRef, torch.Tensor], object]) -> dict:
    ref = reference_to(directory)
    tokens = text_of(ref, "wiki", CALIBRATION)
    started = time.perf_counter()
    with PeakMemory() as memory:
        way(ref, tokens)
    return {"seconds": time.perf_counter() - started, "bytes": memory.host_bytes}


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
    ref = reference_to(directory)
    transforms = plan(ref)
    parameters = size_of(view_config(ref), "float32").after(transforms).parameters
    return {"perplexity": perplexity(load_model(ref.view(transforms), "float32"), ref), "parameters": parameters}


def compensation_of(directory: Path, refit: Refit | None, bias: bool, trains: bool, sequences: int) -> dict:
    """The channels that flap chooses go, and what is left makes up for them."""
    ref = reference_to(directory)
    plan = narrowed("flap", "mlp", "uniform", ref)
    narrow = view = ref.view(plan)
    started = time.perf_counter()
    with TemporaryDirectory() as temporary:
        if refit or bias:
            documents = calibration_rows(ref, sequences, Path(temporary))
            job = CompensationJob(
                model=ref, transforms=plan, refit=refit, bias=bias, documents=documents, calibration=documents.source,  # type: ignore[arg-type]

                dtype="float32",
            )  # fmt: skip
            store = Store.at(f"{temporary}/results")
            job.compute(store, device="cpu", memory_gib=None)
            tensors = job.stored(store)
            assert tensors is not None
            view = ref.view((*plan, tensors))
        found = {"seconds": time.perf_counter() - started}
        ratios = layer_errors(ref, narrow, view)
        model = load_model(view, "float32")
    found |= {"error": float(np.mean(ratios)), "worst": max(ratios), "perplexity": perplexity(model, ref)}
    return found | ({"retrained": perplexity(continued(model, ref), ref)} if trains else {})


def layer_errors(ref: ModelRef, narrow: ModelRef, view: ModelRef) -> list[float]:
    """For each block, the error of its down projection's outputs on held-out wiki and c4, by that of the narrow view;
    inputs are the dense model's."""
    streamed, tokens = (
        StreamedModel.open(ref, "float32"),
        torch.cat([text_of(ref, name, HELD_OUT // 2, last=True) for name in ("wiki", "c4")]),
    )
    walk, output = BlockWalk.of(streamed, LENGTH), axes_of(view_config(ref)).channels[-1]
    states, files, plain = walk.new_states(1, tokens)[0], view_files(view), view_files(narrow)
    ratios = []
    with torch.inference_mode():
        for index, block in streamed.read_blocks(range(streamed.num_blocks)):
            moments, name = Moments(joint=True), f"model.layers.{index}.{output.tensor}"
            with observed(block, {layer_of(output.tensor): moments}):
                walk.apply_in_place(index, block, states)
            weight, kept = block.get_parameter(output.tensor).double(), torch.tensor(plain.of[name].selection[0][1])
            gram = moments.gram(torch.zeros_like(moments.mean))
            (_, new), (_, old) = next(iter(files.read([name]))), next(iter(plain.read([name])))
            ratios.append(error(weight, kept, new.double(), gram) / error(weight, kept, old.double(), gram))
    return ratios


def continued(model: PreTrainedModel, ref: ModelRef) -> PreTrainedModel:
    """Trained on wiki and c4 by turns, all weights, AdamW at one rate."""
    texts = [text_of(ref, name, TRAINED // LENGTH // 2) for name in ("wiki", "c4")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for parts in zip(*(text.split(SEQUENCES_PER_STEP // 2) for text in texts), strict=True):
        tokens = torch.cat(parts)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    main()
