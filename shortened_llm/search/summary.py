"""What a search would do, in words, before it does it."""

from shortened_llm.config import RetrainingConfig, SearchConfig
from shortened_llm.search.preflight import SearchFacts
from shortened_llm.storage.store import Store


def _budgets(retraining: RetrainingConfig) -> str:
    """Tokens of a trial on the corpus, in whole steps."""
    steps = [budget // retraining.tokens_per_step for budget in retraining.budgets]
    listed = " or ".join(f"{count * retraining.tokens_per_step:,} tokens ({count} steps)" for count in steps)
    return f"{listed} a trial" if retraining.uses_corpus else "instructions alone"


def describe_search(config: SearchConfig, facts: SearchFacts, store: Store) -> str:
    """Plain text: trials, tokens, texts and where results go."""
    retraining, resources = config.retraining, config.resources
    counts = ", ".join(f"{count} ({100 * ratio:.3g} %)" for count, ratio in facts.cuts)
    roles = facts.roles
    lines = [
        f"experiment  {config.experiment} in {store.experiment_url(config.experiment)}",
        f"model       {config.model.path}: {facts.num_blocks} blocks",
        f"scoring     {', '.join(config.scoring.criteria)} on {config.calibration.num_sequences} x "
        f"{config.calibration.sequence_length} tokens of {roles.calibration.source.label} ({roles.calibration.part})",
        f"removes     {counts} of {facts.num_blocks} blocks",
        f"trials      at most {facts.max_trials}; criteria that choose the same blocks share one",
        f"training    {', '.join(retraining.methods)}: {_budgets(retraining)}",
    ]
    for name, documents in (("trains on", roles.train), ("selects on", roles.selection), ("reports on", roles.report)):
        texts = ", ".join(f"{text.source.label} ({text.part})" for text in documents) or "nothing: no report texts"
        lines.append(f"{name:<12}{texts}")
    if config.evaluation.report.tasks:
        tasks = ", ".join(task.task for task in config.evaluation.report.tasks)
        lines.append(f"tasks       {tasks} for the dense model, the best of each size and the controls")
    workers = f"{resources.min_workers} to {resources.max_workers}" if resources.elastic else resources.max_workers
    lines.append(
        f"machines    {config.search.max_concurrent_trials} trial(s) at a time, each {workers} worker(s) x "
        f"{resources.cpus_per_worker:g} CPU, {resources.gpus_per_worker:g} GPU; {resources.evaluators} evaluator(s)"
    )
    return "\n".join(lines)
