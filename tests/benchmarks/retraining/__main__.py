"""Continued pretraining, ours side by side with what one would use instead: same model, batches, data and dtypes.

SmolLM2-135M without 20 % of its blocks, 4 x 256 tokens a step. Every procedure runs in processes of its own, all with
the package's allocator settings; the faster of two runs counts.

  trainer     tokens/s in one process against transformers' Trainer, and the perplexity after the same tokens
  fsdp2       tokens/s in two processes against accelerate's FSDP2
  loss_curve  loss of each float32 step against Trainer's
  loss_memory peak memory of the chunked loss against cross-entropy on all logits
  stall       time that the loop waits for checkpoints
  resume      2 -> 1 -> 2 workers against no stop

Needs no Ray. All but loss_memory need `python -m jobs.assets demo`. On a GPU, `make test-gpu` measures more.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shortened_llm.logs import quiet_libraries
from tests.benchmarks.retraining import loss_curve, loss_memory, resume, speed, stall

PARTS = ("trainer", "fsdp2", "loss_curve", "loss_memory", "stall", "resume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help="these parts alone")
    parser.add_argument("--steps", type=int, help="other numbers of steps, to try a part out")
    flags = parser.parse_args()
    quiet_libraries()
    figures, started = {}, time.monotonic()
    for name in flags.only:
        print(f"== {name}", flush=True)
        before = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="shortened_llm_benchmark_") as directory:
            figures[name] = _part(name, Path(directory), flags)()
        print(f"({time.monotonic() - before:.0f} s)\n", flush=True)
        if flags.json:
            flags.json.write_text(json.dumps(figures, indent=2))
    print(f"{time.monotonic() - started:.0f} s in all")


def _part(name: str, directory: Path, flags: argparse.Namespace) -> Callable[[], dict]:
    measure = {
        "trainer": speed.against_trainer,
        "fsdp2": speed.against_fsdp2,
        "loss_curve": loss_curve.against_trainer,
        "loss_memory": loss_memory.against_full_logits,
        "stall": stall.of_checkpoints,
        "resume": resume.with_other_workers,
    }[name]
    return lambda: measure(directory, flags.steps)


if __name__ == "__main__":
    main()
