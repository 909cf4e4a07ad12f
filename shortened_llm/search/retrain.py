"""Retrain one plan alone, outside a search."""

from collections.abc import Iterator
from dataclasses import replace

from shortened_llm.config import ExperimentConfig
from shortened_llm.models.stage import stage_model
from shortened_llm.pruning.plan import choices, chosen_plan, make_plans
from shortened_llm.records import ModelRef, PrunePlan, RetrainedModel, TrialSpec
from shortened_llm.scoring.job import by_ranking, scoring_jobs
from shortened_llm.search.cluster.progress import Progress, ProgressLog
from shortened_llm.search.cluster.train_callbacks import watch_callbacks
from shortened_llm.search.packing import start_packing
from shortened_llm.search.preflight import Facts
from shortened_llm.search.preflight_toy import try_plans
from shortened_llm.search.scoring import compute_all, score
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.stored.experiment import add_runs, own_experiment
from shortened_llm.search.stored.provenance import provenance
from shortened_llm.search.trial import TrainContext, train_runs
from shortened_llm.search.works import plan_works, with_works
from shortened_llm.storage.store import Store


def retrain_plan(
    config: ExperimentConfig, facts: Facts, store: Store, removed: tuple[int, ...] | None
) -> Iterator[tuple[TrialSpec, tuple[RetrainedModel, ...]]]:
    """Retrain a plan by every method, rate and seed of the configuration, one after another; each as it is done.

    Args:
        removed: the blocks that go; None: what the first criterion removes at the first ratio.

    Raises:
        BadInputError: a driver runs the experiment of this name, or the architecture cannot lose these blocks.
    """
    experiment_url = store.experiment_url(config.experiment)
    with own_experiment(store, config.experiment), ProgressLog(config.experiment) as log:
        with log.about("model").under_way():
            dense = stage_model(config.model, store)
        packing = start_packing(dense, config, facts.roles, store, log.about("prepare"))
        plan = _plan(config, facts, dense, removed, store, log.about("prepare"))
        space = SearchSpace(
            dense=dense,
            data=packing(),
            retraining=config.retraining,
            selection=(),
            dtype=config.model.dtype,
            export_dtype=config.model.exported_dtype,
        )
        context = TrainContext(
            space=space,
            store=store,
            experiment=replace(store, url=experiment_url),
            resources=config.resources,
            max_failures=config.search.max_failures,
            provenance=provenance(config),
        )
        specs = space.trials([plan])
        add_runs(store, config.experiment, dense.fingerprint, (run.fingerprint for s in specs for run in space.runs(s)))
        for spec in specs:
            progress = log.about(spec.name)
            with progress.under_way():
                callbacks = watch_callbacks(config.experiment, spec.name, config.resources, progress)
                runs = train_runs(spec, context, train_callbacks=callbacks, progress=progress)
            progress.enter("done")
            yield spec, runs


def _plan(
    config: ExperimentConfig,
    facts: Facts,
    dense: ModelRef,
    removed: tuple[int, ...] | None,
    store: Store,
    progress: Progress,
) -> PrunePlan:
    if removed is not None:
        return chosen_plan(removed, facts.size)
    jobs = scoring_jobs(config, dense, facts.roles.calibration, facts.counts)
    scores = score(jobs, config.resources, store, progress)
    chosen = choices(config.search, scores, facts.size)
    first = make_plans(chosen, facts.size)[0]
    try_plans(facts.model_config, facts.tokenizer, [first.transforms])
    own = [one for one in chosen if one.label in first.labels]
    wanted = plan_works(own, by_ranking(scores, jobs), facts.size)
    compute_all(wanted, config.resources, store, progress)
    return make_plans(with_works(wanted, wanted, store), facts.size)[0] if wanted else first
