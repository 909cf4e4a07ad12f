"""Generation by a pruned model beside the dense one: latency, time to the first token, throughput, memory.

SmolLM2-135M, or another model, without a run of blocks in its middle: the first 4 and the last 2 stay, and 12 of 30 go.
Both generate in turns in one process. The last column is the measured speed-up, the median over the turns, over the
ideal one: dense time / (dense time less the removed blocks' share of it).

Needs no Ray. Needs `python -m jobs.assets demo`, or --model.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from shortened_llm.config import EfficiencyConfig
from shortened_llm.evaluation.efficiency import measure_efficiency
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.records import EfficiencyScore, GenerationPoint
from tests.benchmarks.loading import reference_to
from tests.benchmarks.scoring import ASSETS
from tests.conftest import keeping

PROTECT_FIRST, PROTECT_LAST = 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--model", type=Path, default=ASSETS / "smollm2-135m-instruct", metavar="DIR")
    parser.add_argument("--ratio", type=float, default=0.4, help="fraction of blocks to remove")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--output-lengths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmups", type=int, default=10)
    parser.add_argument("--static-cache", action="store_true")
    parser.add_argument("--compile", action="store_true", help="with --static-cache")
    options = parser.parse_args()
    if options.device == "cpu":
        prepare_cpu(fair_threads(1))
    settings = EfficiencyConfig(
        batch_sizes=tuple(options.batch_sizes),
        output_lengths=tuple(options.output_lengths),
        runs=options.runs,
        warmups=options.warmups,
        static_cache=options.static_cache,
        compile=options.compile,
    )
    dense = reference_to(options.model)
    kept = kept_blocks(dense.num_blocks, options.ratio)
    score = measure_efficiency(dense, dense.view(keeping(kept)), settings, dtype=options.dtype, device=options.device)
    print_table(score)
    if options.json:
        figures = asdict(score) | {"kept_blocks": kept}
        options.json.write_text(json.dumps(figures, indent=2))


def kept_blocks(num_blocks: int, ratio: float) -> tuple[int, ...]:
    """All but a run of blocks in the middle of the unprotected ones: which ones go does not change the speed."""
    count = round(ratio * num_blocks)
    unprotected = range(PROTECT_FIRST, num_blocks - PROTECT_LAST)
    start = PROTECT_FIRST + (len(unprotected) - count) // 2
    return tuple(block for block in range(num_blocks) if not start <= block < start + count)


def print_table(score: EfficiencyScore) -> None:
    """Two lines a shape, the dense model first; seconds, tokens per second, MiB."""
    print(score.protocol)
    for name, of in (("dense", score.dense), ("pruned", score.model)):
        print(
            f"{name}: weights {of.weight_bytes / 2**20:.1f} MiB, cache {of.kv_bytes_per_token:,} B/token, "
            f"{of.flops_per_token / 1e9:.3f} GFLOP/token"
        )
    print(
        f"{'batch':>5} {'new':>4} {'':6} {'latency':>8} {'+-':>6} {'first':>7} {'tokens/s':>9} {'MiB':>7} {'GPU':>5} "
        f"{'blocks':>7} {'head':>5} {'measured':>9} {'ideal':>6} {'ratio':>6}"
    )
    for point in score.points:
        measured, ideal = point.speed_up, point.ideal_speed_up
        assert ideal is not None, "what was removed is known"
        print(f"{_cells(point.dense, 'dense')} {point.block_share:7.1%} {point.head_share:5.1%}")
        print(f"{_cells(point.model, 'pruned')} {'':7} {'':5} {measured:9.3f} {ideal:6.3f} {measured / ideal:6.3f}")


def _cells(point: GenerationPoint, name: str) -> str:
    gpu = "" if point.gpu_utilisation is None else f"{point.gpu_utilisation:.0%}"
    return (
        f"{point.batch_size:5} {point.output_tokens:4} {name:6} {point.latency:8.3f} {point.latency_deviation:6.3f} "
        f"{point.time_to_first_token:7.3f} {point.throughput:9.1f} {point.peak_memory_bytes / 2**20:7.1f} {gpu:>5}"
    )


if __name__ == "__main__":
    main()
