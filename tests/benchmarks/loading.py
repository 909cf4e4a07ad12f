"""Opening a model for training in two processes: the host memory that each takes, and how long.

(whole) every process loads the whole view in float32, then shards it; (shards) ours: weights go from the files straight
into the shards. A view of SmolLM2-135M, and of two wider models, one of them with experts, where the fixed cost of
libraries matters less; all are written in bfloat16 first, as models are published. Memory is the highest number of
anonymous bytes above what the process held before loading; mapped pages of the files, which the kernel may drop, are no
part of it.

Needs no Ray. Needs `python -m jobs.assets demo`.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import LlamaConfig, MixtralConfig, PretrainedConfig, PreTrainedModel

from shortened_llm.config import RetrainingConfig, TrainingSource
from shortened_llm.models.build import empty_model
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.models.directory import load_config
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef
from shortened_llm.retraining.sharding import open_sharded, shard_model
from shortened_llm.storage.payload import describe_files
from tests.benchmarks.peak_memory import PeakMemory
from tests.benchmarks.scoring import ASSETS
from tests.conftest import keeping

PROCESSES = 2
CPU = torch.device("cpu")
# 0.6 and 0.4 billion parameters.
WIDE = LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=8,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32_000,
)
EXPERTS = MixtralConfig(
    hidden_size=1024,
    intermediate_size=3584,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_local_experts=8,
    vocab_size=32_000,
)


PLACEMENT = RetrainingConfig(data=(TrainingSource(path="unread"),), tokens=2**20)


def load_whole(ref: ModelRef, mesh: DeviceMesh) -> PreTrainedModel:
    model = load_model(ref, "float32").train()
    shard_model(model, mesh, "bfloat16", PLACEMENT)
    return model


def load_shards(ref: ModelRef, mesh: DeviceMesh) -> PreTrainedModel:
    return open_sharded(ref, mesh, "bfloat16", PLACEMENT, device=CPU, sequence_length=1024)


WAYS: dict[str, Callable[[ModelRef, DeviceMesh], PreTrainedModel]] = {"whole": load_whole, "shards": load_shards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shortened_llm_benchmark_") as temporary:
        smol = load_model(reference_to(ASSETS / "smollm2-135m-instruct"), "bfloat16")
        views = {
            "SmolLM2-135M": (smol, (*range(20), *range(26, 30))),
            "Llama of width 2048": (valueless_model(WIDE), (0, 1, 2, 5, 6, 7)),
            "Mixtral of width 1024": (valueless_model(EXPERTS), (0, 1, 3)),
        }
        figures = {}
        for title, (model, kept) in views.items():
            directory = Path(temporary) / title
            model.save_pretrained(directory)
            print(f"{title}, {len(kept)} of {model.config.num_hidden_layers} blocks, {PROCESSES} processes; MiB")
            figures[title] = compare(reference_to(directory).view(keeping(kept)), Path(temporary))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def compare(ref: ModelRef, temporary: Path) -> dict[str, dict]:
    """Load in both ways, print a table in MiB, and return the figures of the process that took more."""
    print(f"{'':8} {'peak':>8} {'after':>8} {'shard':>8} {'+ two tensors':>14} {'peak/shard':>11} {'seconds':>8}")
    found = {}
    for way in WAYS:
        rendezvous = tempfile.mkdtemp(dir=temporary)
        mp.spawn(_measure, args=(way, ref, rendezvous), nprocs=PROCESSES)
        ranks = [json.loads((Path(rendezvous) / str(rank)).read_text()) for rank in range(PROCESSES)]
        found[way] = max(ranks, key=lambda rank: rank["peak_bytes"])
        kinds = ("peak_bytes", "after_bytes", "shard_bytes", "two_tensors_bytes")
        peak, after, shard, two = (found[way][kind] / 2**20 for kind in kinds)
        print(
            f"{way:8} {peak:8.0f} {after:8.0f} {shard:8.0f} {shard + two:14.0f} {peak / shard:11.2f} "
            f"{found[way]['seconds']:8.1f}"
        )
    return found


def _measure(rank: int, way: str, ref: ModelRef, rendezvous: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    prepare_cpu(fair_threads(PROCESSES))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}/store", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    dist.barrier()
    started = time.perf_counter()
    with PeakMemory() as memory:
        model = WAYS[way](ref, mesh)
        seconds = time.perf_counter() - started
    sizes = sorted(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    found = {
        "peak_bytes": memory.host_bytes,
        "after_bytes": memory.held_host_bytes,
        "shard_bytes": sum(p.to_local().numel() * p.element_size() for p in model.parameters()),
        "two_tensors_bytes": sum(sizes[-2:]),
        "seconds": seconds,
    }
    (Path(rendezvous) / str(rank)).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def valueless_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model in bfloat16 whose values do not matter."""
    model = empty_model(config, "bfloat16").to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    return model


def reference_to(directory: Path) -> ModelRef:
    blocks = load_config(directory).num_hidden_layers
    return ModelRef(url=str(directory), fingerprint="local", files=describe_files(directory), num_blocks=blocks)


if __name__ == "__main__":
    main()
