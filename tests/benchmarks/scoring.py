"""Scoring blocks by perplexity: one walk against rebuilding the network per block and against in-place bypass.

SmolLM2-135M, 10 x 128 tokens: (a) rebuild: a fresh random model without the block, the dense weights copied, one
sequence per forward pass; (b) bypass: one model, each block replaced by an identity in turn, all sequences at once;
(c) our walk in float32; (d) our walk in bfloat16. Each runs twice in a process of its own, which reports its wall time,
its peak memory and its order; the faster run and the larger memory count. Then: the walk's arithmetic against a plain
matmul's, Taylor one block at a time against full autograd, and the time for 8, 16 and 30 blocks.

Needs no Ray. Needs `python -m jobs.assets demo`. On a GPU, `make test-gpu` measures models of 1 and 8 billion
parameters.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from shortened_llm.config import CalibrationConfig
from shortened_llm.criteria.taylor import TaylorOptions
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.sources import Documents
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import DTYPES
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.models.directory import load_config, load_tokenizer
from shortened_llm.models.load import load_model
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import size_of
from shortened_llm.records import ModelRef
from shortened_llm.scoring.one_pass import NLL, walk_statistics
from shortened_llm.scoring.taylor import measure_taylor
from shortened_llm.scoring.weights import block_score, scored_weights
from shortened_llm.storage.payload import describe_files
from tests.benchmarks.peak_memory import PeakMemory
from tests.conftest import keeping

SEQUENCES, LENGTH = 10, 128
ASSETS = Path("~/.cache/shortened_llm/assets").expanduser()


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matmul_gflops(dtype: torch.dtype) -> float:
    """Rate of square products over two seconds: long enough that other work on the machine slows it as it slows us."""
    size = 2048
    left, right = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    seconds_of(lambda: left @ right)
    seconds, products = 0.0, 0
    while seconds < 2:
        seconds += seconds_of(lambda: left @ right)
        products += 1
    return 2 * size**3 * products / seconds / 1e9


def walk_flops(reference: ModelRef, predictions_of: torch.Tensor) -> float:
    """Multiplications and additions of one walk: weights of blocks and head, and attention's two products."""
    config = load_config(Path(reference.url))
    streamed = StreamedModel.open(reference, "float32")
    num_blocks, tokens = streamed.num_blocks, predictions_of.numel()
    in_block = sum(w.numel() for w in streamed.blocks[0].parameters() if w.dim() >= 2)
    attention = 2 * predictions_of.shape[1] * config.hidden_size
    calls = num_blocks * (num_blocks + 1) / 2
    head = config.vocab_size * config.hidden_size
    return 2 * tokens * (calls * (in_block + attention) + (num_blocks + 1) * head)


def nll_of(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten()).item()


@torch.inference_mode()
def rebuild(reference: ModelRef, tokens: torch.Tensor, dtype: str, blocks: range) -> list[float]:
    """(a): mean loss without each block, in nats."""
    dense = load_model(reference, dtype)
    scores = []
    for removed in blocks:
        config = load_config(Path(reference.url))
        config.num_hidden_layers -= 1
        shorter = AutoModelForCausalLM.from_config(config, dtype=dense.dtype).eval()
        kept = [block for index, block in enumerate(find_blocks(dense)) if index != removed]
        for target, source in zip(find_blocks(shorter), kept, strict=True):
            target.load_state_dict(source.state_dict())
        outside = {name: w for name, w in dense.state_dict().items() if ".layers." not in name}
        shorter.load_state_dict(outside, strict=False)
        scores.append(sum(nll_of(shorter(input_ids=row[None], use_cache=False).logits, row[None]) for row in tokens))
    return [score / len(tokens) for score in scores]


@torch.inference_mode()
def bypass(reference: ModelRef, tokens: torch.Tensor, dtype: str, blocks: range) -> list[float]:
    """(b)."""
    model = load_model(reference, dtype)
    scores = []
    for removed in blocks:
        original = find_blocks(model)[removed]
        find_blocks(model)[removed] = _Identity()
        scores.append(nll_of(model(input_ids=tokens, use_cache=False).logits, tokens))
        find_blocks(model)[removed] = original
    return scores


class _Identity(nn.Module):
    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden_states


def one_pass(reference: ModelRef, tokens: torch.Tensor, dtype: str, blocks: range) -> list[float]:
    """(c) and (d)."""
    streamed = StreamedModel.open(reference, dtype)
    nll = walk_statistics(streamed, tokens, [NLL], memory_gib=None)[NLL]
    return nll.mean(axis=0)[1:][list(blocks)].tolist()


def taylor_streamed(reference: ModelRef, tokens: torch.Tensor, dtype: str, blocks: range) -> list[float]:
    streamed = StreamedModel.open(reference, dtype)
    values = measure_taylor(streamed, tokens, TaylorOptions(), memory_gib=None)
    return values[list(blocks)].tolist()


def taylor_autograd(reference: ModelRef, tokens: torch.Tensor, dtype: str, blocks: range) -> list[float]:
    model = load_model(reference, dtype)
    for part in tokens.split(5):  # what fits beside the gradients on a small machine
        loss = F.cross_entropy(
            model(input_ids=part, use_cache=False).logits[:, :-1].flatten(0, 1), part[:, 1:].flatten()
        )
        (loss * len(part) / len(tokens)).backward()
    every = [list(scored_weights(find_blocks(model)[block])) for block in blocks]
    return [block_score(((w.detach() * w.grad).abs() for w in weights), TaylorOptions()) for weights in every]


# These hold hidden states on purpose: their memory is counted above them.
STREAMED = ("c", "d", "taylor")
PROCEDURES: dict[str, tuple[str, Callable[[ModelRef, torch.Tensor, str, range], list[float]], str]] = {
    "a": ("rebuild per block, float32", rebuild, "float32"),
    "b": ("in-place bypass, float32", bypass, "float32"),
    "c": ("one walk, float32", one_pass, "float32"),
    "d": ("one walk, bfloat16", one_pass, "bfloat16"),
    "taylor": ("Taylor, one block at a time", taylor_streamed, "float32"),
    "autograd": ("Taylor, full autograd", taylor_autograd, "float32"),
}


def run_one(name: str, directory: Path, num_blocks: int) -> dict[str, object]:
    """Run one procedure in this process."""
    prepare_cpu(fair_threads(1))
    reference = reference_to(directory)
    if num_blocks < reference.num_blocks:
        reference = reference.view(keeping(tuple(range(num_blocks))))
    tokens = calibration(directory)
    _, procedure, dtype = PROCEDURES[name]
    blocks = range(num_blocks)
    gflops = matmul_gflops(DTYPES[dtype])
    with PeakMemory() as memory:
        started = time.perf_counter()
        scores = procedure(reference, tokens, dtype, blocks)
        seconds = time.perf_counter() - started
    gflops = (gflops + matmul_gflops(DTYPES[dtype])) / 2
    states = (num_blocks + 1) * tokens.numel() * load_config(directory).hidden_size * DTYPES[dtype].itemsize
    return {
        "seconds": seconds,
        "scores": scores,
        "anonymous_bytes": memory.bytes,
        "state_bytes": states,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "matmul_gflops": gflops,
        "gflops": walk_flops(reference, tokens) / seconds / 1e9 if name in ("c", "d") else None,
    }


def reference_to(directory: Path) -> ModelRef:
    return ModelRef(
        url=str(directory),
        fingerprint="0" * 16,
        files=describe_files(directory),
        num_blocks=load_config(directory).num_hidden_layers,
    )


def calibration(directory: Path) -> torch.Tensor:
    path = ASSETS / "texts/wiki.jsonl"
    config = CalibrationConfig(path=str(path), num_sequences=SEQUENCES, sequence_length=LENGTH)
    documents = Documents(
        source=config, purpose="train", shared_with=(), files=(str(path),), commit=None, field_path="calibration"
    )
    tokenizer = load_tokenizer(directory)
    return calibration_tokens(documents, config, tokenizer, vocab_size=len(tokenizer), bos=False)


def in_process(name: str, directory: Path, num_blocks: int) -> dict:
    command = [sys.executable, "-m", "tests.benchmarks.scoring", "--run", name, str(directory), str(num_blocks)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def swapped_pairs(reference: list[float], other: list[float]) -> list[tuple[int, int, float]]:
    """Pairs of blocks that two lists of scores rank differently, with how far apart the first list has them."""
    pairs = []
    for one in range(len(reference)):
        for two in range(one):
            if (reference[one] - reference[two]) * (other[one] - other[two]) < 0:
                pairs.append((two, one, abs(reference[one] - reference[two]) / min(reference[one], reference[two])))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--run", nargs=3, metavar=("NAME", "DIRECTORY", "BLOCKS"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.run:
        print(json.dumps(run_one(flags.run[0], Path(flags.run[1]), int(flags.run[2]))))
        return
    figures = compare(ASSETS / "smollm2-135m-instruct")
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=2))


def compare(directory: Path) -> dict[str, dict]:
    """Run everything, print the tables, and return the figures."""
    num_blocks = load_config(directory).num_hidden_layers
    size = size_of(load_config(directory), "float32")
    found = {}
    for name in PROCEDURES:
        runs = [in_process(name, directory, num_blocks) for _ in range(2)]
        # Other work on the machine only ever slows a run.
        found[name] = min(runs, key=lambda figures: figures["seconds"])
        for memory in ("anonymous_bytes", "peak_rss_bytes"):
            found[name][memory] = max(figures[memory] for figures in runs)
    print(f"{directory.name}: {num_blocks} blocks, {SEQUENCES} x {LENGTH} tokens")
    print(
        f"{'':37} {'seconds':>8} {'vs (a)':>7} {'vs (b)':>7} {'peak RSS':>10} {'above states':>13} {'of weights':>11}"
    )
    for name, figures in found.items():
        title, _, dtype = PROCEDURES[name]
        above = figures["anonymous_bytes"] - (figures["state_bytes"] if name in STREAMED else 0)
        share = above / (size.without(()).parameters * DTYPES[dtype].itemsize)
        versus = [found[base]["seconds"] / figures["seconds"] for base in ("a", "b")]
        ratios = f"{versus[0]:6.2f}x {versus[1]:6.2f}x" if name in "abcd" else " " * 15
        print(
            f"{f'({name}) {title}':37} {figures['seconds']:8.1f} {ratios} {figures['peak_rss_bytes'] / 2**20:6.0f} MiB "
            f"{above / 2**20:9.0f} MiB {share:11.1%}"
        )
    for name in ("c", "d"):
        share = found[name]["gflops"] / found[name]["matmul_gflops"]
        print(f"({name}) {found[name]['gflops']:.0f} GFLOP/s, {share:.0%} of a plain matmul's in the same process")
    for name in ("b", "c", "d"):
        reference = found["a"]["scores"]
        scores = found[name]["scores"][: len(reference)]
        swapped = swapped_pairs(reference, scores)
        furthest = max((distance for *_, distance in swapped), default=0.0)
        error = max(abs(one / two - 1) for one, two in zip(scores, reference, strict=True))
        print(
            f"({name}) scores differ from (a) by up to {error:.1e}; {len(swapped)} pairs are ranked differently"
            + (f", which (a) has {furthest:.1e} apart at most" if swapped else "")
        )
    error = max(abs(s / t - 1) for s, t in zip(found["taylor"]["scores"], found["autograd"]["scores"], strict=True))
    print(f"Taylor differs from full autograd by up to {error:.1e}")
    scaling = {blocks: in_process("c", directory, blocks) for blocks in (8, 16) if blocks < num_blocks}
    scaling[num_blocks] = found["c"]
    print("(c) by number of blocks: " + ", ".join(f"{n}: {figures['seconds']:.1f} s" for n, figures in scaling.items()))
    return found | {f"c with {blocks} blocks": figures for blocks, figures in scaling.items()}


if __name__ == "__main__":
    main()
