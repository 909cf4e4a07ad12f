"""Work on a streamed model, one Ray task for each piece."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
import torch

from shortened_llm.attempts import attempt
from shortened_llm.config import ResourcesConfig
from shortened_llm.logs import setup_process
from shortened_llm.models.cpu import prepare_cpu
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A piece of work, which stores what it makes."""

    name: str
    subject: str
    """What the log calls it."""
    do: Callable[..., None]
    """Takes the store, and by name `device` and `memory_gib`."""


def do_all(works: Sequence[Work], resources: ResourcesConfig, store: Store, progress: Progress) -> None:
    """Do all pieces, each up to three times, as many at a time as the cluster takes."""
    # Where GPUs are asked for here, not in `options` later, Ray ends a process with its task, and so its hold on them.
    task = ray.remote(
        num_cpus=resources.cpus_per_scorer,
        num_gpus=resources.gpus_per_scorer,
        max_retries=0,
        scheduling_strategy="DEFAULT",  # else in what Tune reserved for a trial, if one asks
    )(_do)

    async def done(work: Work) -> None:
        about = progress.about(work.subject)
        about("waiting for its resources")
        arguments = (work, store, resources, about)
        await attempt(work.name, lambda: asyncio.wrap_future(task.remote(*arguments).future()), on_failure=about.note)

    async def all_done() -> None:
        await asyncio.gather(*map(done, works))

    asyncio.run(all_done())


def _do(work: Work, store: Store, resources: ResourcesConfig, progress: Progress) -> None:
    setup_process()
    store.enter()
    device, memory_gib = "cuda" if ray.get_gpu_ids() else "cpu", resources.scoring_memory_gib
    if device == "cpu":
        prepare_cpu(math.ceil(resources.cpus_per_scorer))
    elif memory_gib is None and resources.gpus_per_scorer < 1:  # others begin beside it: half of its own share
        memory_gib = resources.gpus_per_scorer * torch.cuda.mem_get_info()[1] / 2 / 2**30
    with progress.under_way():
        work.do(store, device=device, memory_gib=memory_gib)
