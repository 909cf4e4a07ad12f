"""A whole search, in the order in which data moves."""

import ray

from shortened_llm.config import SearchConfig
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.logs import LOGGER
from shortened_llm.models.cut import cut_config
from shortened_llm.models.files import model_size, open_tensor_files
from shortened_llm.models.load import load_config, model_directory
from shortened_llm.models.stage import stage_model
from shortened_llm.pruning.plan import make_plans
from shortened_llm.search.experiment import publish_report, write_config
from shortened_llm.search.finish import gather, submit_dense
from shortened_llm.search.preflight import SearchFacts, check_unchanged, evaluators_may_idle
from shortened_llm.search.prepare import prepare, selection_units
from shortened_llm.search.progress import ProgressLog
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.trial import TrialContext
from shortened_llm.search.tuner import run_trials
from shortened_llm.storage.lease import hold_lease
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join


class TrialsFailedError(RuntimeError):
    """Some trials have no result. The report is written all the same."""


def run_search(config: SearchConfig, facts: SearchFacts, store: Store) -> str:
    """Run an experiment, or what is left of it, on the connected Ray cluster; returns the report's path or URL.

    Args:
        facts: what the checks found, so that a data set cannot change between check and run.

    Raises:
        BadInputError: another driver runs this experiment.
        TrialsFailedError: with the report's place and the first cause.
    """
    experiment_url = store.experiment_url(config.experiment)
    roles = facts.roles
    with hold_lease(experiment_url), ProgressLog() as log:
        check_unchanged(config, store)  # once more: another driver may have begun while this one waited
        staging = log.about("model")
        dense = stage_model(config.model, store, on_progress=staging)
        staging(None)
        pool = EvaluationPool.start(
            store,
            config.resources,
            dtype=config.model.dtype,
            batch_size=config.evaluation.batch_size,
            may_idle=evaluators_may_idle(config, ray.cluster_resources()),
        )
        dense_scores = submit_dense(config, dense, roles, pool, log.about("dense"))
        prepared = prepare(dense, config, facts, store, log.about("prepare"))
        baseline = dense_scores()
        write_config(store, config)
        directory = model_directory(dense)
        plans = make_plans(config.search, prepared.scores, model_size(open_tensor_files(directory), dense.num_blocks))
        for plan in plans:
            cut_config(load_config(directory), plan.kept_blocks)  # refuses what this architecture cannot lose
        space = SearchSpace(
            dense=dense,
            tokens=prepared.tokens,
            retraining=config.retraining,
            selection=selection_units(config, roles),
            dtype=config.model.dtype,
        )
        specs = space.trials(plans)
        labels = sum(len(plan.labels) for plan in plans)
        LOGGER.info("%d labels are %d distinct plans: %d trials", labels, len(plans), len(specs))
        context = TrialContext(
            space=space,
            store=store,
            experiment=Store(experiment_url),
            pool=pool,
            resources=config.resources,
            max_failures=config.search.max_failures,
        )
        failures = run_trials(
            specs,
            context,
            tune_url=join(experiment_url, "tune"),
            max_concurrent_trials=config.search.max_concurrent_trials,
            progress=log.about("search"),
        )
        experiment = gather(config, context, baseline, roles, prepared.scores, specs, failures, log.about("report"))
        report = publish_report(store, experiment)
    if failures:
        cause = next(iter(failures.values())).cause
        raise TrialsFailedError(f"{len(failures)} of {len(specs)} trials failed ({cause}); report: {report}")
    return report
