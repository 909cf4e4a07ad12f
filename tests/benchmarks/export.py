"""Peak host memory of exporting a model of the shape of Llama 3.2 1B: `python -m tests.benchmarks.export`.

(streamed) ours: each tensor is written as it is read or gathered, and what was written is verified; (whole) the model
is loaded, or gathered by one process, and saved by transformers' `save_pretrained`, without a proof. The dense weights
are random, in bfloat16. A view is exported in the type of its files, which transformers maps instead of copying, and in
another type, and has three fifths of the blocks; a retrained model comes out of the shards of two processes, a quarter.

Each export has processes of its own. Memory is the highest number of anonymous bytes above what the process held
before, of the process that took most; mapped pages of files, which the kernel may drop, are no part of it. Needs no Ray
and no assets, but 12 GB of disk and 10 GiB of memory.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from shortened_llm.models.build import DTYPES
from shortened_llm.models.cpu import fair_threads
from shortened_llm.models.directory import load_config
from shortened_llm.models.export import export_view
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import with_plain_names
from shortened_llm.models.view import empty_view
from shortened_llm.records import ModelRef
from shortened_llm.retraining.export import export_sharded
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.sharding import open_sharded
from shortened_llm.storage.store import Store
from tests.benchmarks.peak_memory import PeakMemory
from tests.conftest import keeping
from tests.gpu.models import random_job, write_model

PROCESSES = 2
LENGTH = 128
CPU = torch.device("cpu")


def view_streamed(ref: ModelRef, dtype: str, directory: Path) -> None:
    export_view(ref, directory, dtype)


def view_whole(ref: ModelRef, dtype: str, directory: Path) -> None:
    load_model(ref, dtype).save_pretrained(directory)


def shards_streamed(model: PreTrainedModel, job: RetrainingJob, directory: Path) -> None:
    export_sharded(model, job, Store.at(str(directory)), rank=dist.get_rank())


def shards_whole(model: PreTrainedModel, job: RetrainingJob, directory: Path) -> None:
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        saved = {name: value.to(DTYPES[job.export_dtype]) for name, value in with_plain_names(state).items()}
        empty_view(job.model, job.export_dtype).save_pretrained(directory, state_dict=saved)
    dist.barrier()


VIEW = {"streamed": view_streamed, "whole": view_whole}
SHARDS = {"streamed": shards_streamed, "whole": shards_whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--shape", default="1b", choices=("toy", "1b"), help="of the dense model")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shortened_llm_benchmark_") as temporary:
        dense = Path(temporary) / "dense"
        mp.spawn(_write_model, args=(dense, flags.shape))
        view, small = view_of(dense, 3 / 5), view_of(dense, 1 / 4)
        exports: dict[str, tuple[ModelRef, str, Callable[..., None], int]] = {
            "view, type of its files": (view, "bfloat16", _export_view, 1),
            "view, another type": (view, "float32", _export_view, 1),
            "shards": (small, "bfloat16", _export_shards, PROCESSES),
        }
        figures = {}
        for title, (view, dtype, export, processes) in exports.items():
            sizes = [parameter.nbytes for parameter in empty_view(view, dtype).parameters()]
            found = {way: _measured(partial(export, way, view, dtype), processes) for way in VIEW}
            figures[title] = {"model_bytes": sum(sizes), "largest_tensor_bytes": max(sizes), **found}
            _print(title, dtype, figures[title])
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=2))


def _print(title: str, dtype: str, figures: dict) -> None:
    """A table in GiB. The share is that of the exported model."""
    model, tensor = figures["model_bytes"], figures["largest_tensor_bytes"]
    print(f"\n{title}: {model / 2**30:.2f} GiB in {dtype}, largest tensor {tensor / 2**30:.2f}")
    print(f"{'':10} {'peak':>6} {'/ model':>8} {'/ tensor':>9} {'shard before':>13} {'seconds':>8}")
    for way in VIEW:
        row = figures[way]
        peak = row["peak_bytes"]
        print(
            f"{way:10} {peak / 2**30:6.2f} {peak / model:8.2f} {peak / tensor:9.2f} "
            f"{row['shard_bytes'] / 2**30:13.2f} {row['seconds']:8.1f}"
        )
    print(f"streamed / whole: {figures['streamed']['peak_bytes'] / figures['whole']['peak_bytes']:.2f}")


def view_of(directory: Path, share: float) -> ModelRef:
    """A share of the blocks, the first ones; without hashes of the files, which would take long."""
    blocks = load_config(directory).num_hidden_layers
    ref = ModelRef(url=str(directory), fingerprint="local", files=(), num_blocks=blocks)
    return ref.view(keeping(range(int(blocks * share))))


def _write_model(_: int, directory: Path, shape: str) -> None:
    write_model(directory, shape, dtype=torch.bfloat16, device=CPU)


def _measured(export: Callable[..., None], processes: int) -> dict:
    """The figures of the process that took most; files go as soon as it has ended."""
    with tempfile.TemporaryDirectory(prefix="shortened_llm_benchmark_") as temporary:
        mp.spawn(_run, args=(export, Path(temporary), processes), nprocs=processes)
        ranks = [json.loads((Path(temporary) / f"{rank}.json").read_text()) for rank in range(processes)]
    found: dict = max(ranks, key=lambda rank: rank["peak_bytes"])
    return found


def _run(rank: int, export: Callable[..., None], temporary: Path, processes: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(fair_threads(processes))
    dist.init_process_group("gloo", init_method=f"file://{temporary}/rendezvous", rank=rank, world_size=processes)
    export(temporary, temporary / f"{rank}.json")
    dist.destroy_process_group()


def _export_view(way: str, view: ModelRef, dtype: str, temporary: Path, figures: Path) -> None:
    _measure(lambda: VIEW[way](view, dtype, temporary / "out"), 0, figures)


def _export_shards(way: str, view: ModelRef, dtype: str, temporary: Path, figures: Path) -> None:
    job = random_job(temporary / figures.stem, view, steps=1, dtype=dtype, sequences=2, length=LENGTH)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    model = open_sharded(view, mesh, dtype, job.placement, device=CPU, sequence_length=LENGTH)
    shard = sum(parameter.to_local().nbytes for parameter in model.parameters())
    _measure(lambda: SHARDS[way](model, job, temporary / "out"), shard, figures)


def _measure(work: Callable[[], None], shard_bytes: int, figures: Path) -> None:
    started = time.perf_counter()
    with PeakMemory() as memory:
        work()
    found = {"peak_bytes": memory.host_bytes, "shard_bytes": shard_bytes, "seconds": time.perf_counter() - started}
    figures.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
