"""Score a model, and compute what plans hold beside its files, on the cluster."""

from collections.abc import Mapping, Sequence
from functools import partial

from shortened_llm.config import ResourcesConfig
from shortened_llm.pruning.plan import Choice
from shortened_llm.pruning.work import PlanWork
from shortened_llm.records import Scores
from shortened_llm.scoring.job import ScoringJob, work_name
from shortened_llm.scoring.measure import measure, pending_work
from shortened_llm.scoring.score import score_all
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.search.cluster.scorers import Work, do_all
from shortened_llm.search.works import pending_works
from shortened_llm.storage.store import Store


def score(
    jobs: Sequence[ScoringJob], resources: ResourcesConfig, store: Store, progress: Progress
) -> tuple[Scores, ...]:
    """The scores by every criterion: what is not stored yet is measured first, one Ray task per unit of work."""
    works = [
        Work(name=unit.name, subject=f"score {work_name(unit, job)}", do=partial(measure, unit, job))
        for unit, job in pending_work(jobs, store, resources.scoring_shards)
    ]
    do_all(works, resources, store, progress)
    return score_all(jobs, store, num_shards=resources.scoring_shards)


def compute_all(
    wanted: Mapping[Choice, PlanWork], resources: ResourcesConfig, store: Store, progress: Progress
) -> None:
    """Compute what is not stored yet, one Ray task for each."""
    works = [Work(name=name, subject=name, do=work.compute) for name, work in pending_works(wanted, store)]
    do_all(works, resources, store, progress)
