"""Score the blocks of a model on the cluster."""

import asyncio
import math
from collections.abc import Sequence

import ray

from shortened_llm.attempts import attempt
from shortened_llm.config import ResourcesConfig
from shortened_llm.logs import setup_process
from shortened_llm.models.cpu import prepare_cpu
from shortened_llm.records import Scores
from shortened_llm.scoring.job import ScoringJob, Unit, work_name
from shortened_llm.scoring.measure import measure, pending_work
from shortened_llm.scoring.score import score_all
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.storage.store import Store


def score(
    jobs: Sequence[ScoringJob], resources: ResourcesConfig, store: Store, progress: Progress
) -> tuple[Scores, ...]:
    """The scores by every criterion: what is not stored yet is measured first, one Ray task per unit of work."""
    task = _measure.options(
        num_cpus=resources.cpus_per_scorer, num_gpus=resources.gpus_per_scorer, scheduling_strategy="DEFAULT"
    )  # else in what Tune reserved for a trial, if one asks

    async def measured(unit: Unit, job: ScoringJob) -> None:
        about = progress.about(f"score {work_name(unit, job)}")
        about("waiting for its resources")
        arguments = (unit, job, store, resources, about)
        await attempt(unit.name, lambda: asyncio.wrap_future(task.remote(*arguments).future()), on_failure=about.note)

    async def all_measured() -> None:
        await asyncio.gather(*(measured(*work) for work in pending_work(jobs, store, resources.scoring_shards)))

    asyncio.run(all_measured())
    return score_all(jobs, store, num_shards=resources.scoring_shards)


@ray.remote(max_retries=0)
def _measure(unit: Unit, job: ScoringJob, store: Store, resources: ResourcesConfig, progress: Progress) -> None:
    setup_process()
    store.enter()
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    if device == "cpu":
        prepare_cpu(math.ceil(resources.cpus_per_scorer))
    with progress.under_way():
        measure(unit, job, store, device=device, memory_gib=resources.scoring_memory_gib)
