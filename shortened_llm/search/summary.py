"""What a search would do, in words, before it does it."""

from shortened_llm.config import BudgetConfig, ExperimentConfig, RetrainingConfig
from shortened_llm.config.metric import objective
from shortened_llm.data.sources import TextRoles
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import DTYPES, empty_model
from shortened_llm.records import LoraOptions, PruneUnit, num_units
from shortened_llm.records.objective import PERPLEXITY
from shortened_llm.retraining.adapters import adapted_share, adapter_targets
from shortened_llm.search.forecast import Forecast
from shortened_llm.search.memory import GIB, gpu_share
from shortened_llm.search.outline import Outline
from shortened_llm.search.preflight import Facts
from shortened_llm.search.preflight_settings import ModelFacts
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import free_bytes


def _budgets(retraining: RetrainingConfig) -> str:
    """Tokens of a trial on the corpus, in whole steps."""
    if not retraining.runs:
        return "nothing is trained"
    steps = [budget // retraining.tokens_per_step for budget in retraining.budgets]
    listed = " or ".join(f"{count * retraining.tokens_per_step:,} tokens ({count} steps)" for count in steps)
    return f"{listed} a trial" if retraining.uses_corpus else "instructions alone"


def _adapters(adapters: LoraOptions, facts: ModelFacts) -> str:
    """Which layers get adapters, and what share of the blocks' weights they are."""
    model = empty_model(facts.model_config)
    targets = adapter_targets(model, adapters.target_modules)
    names = ", ".join(sorted({name.rpartition(".")[2] for name in targets}))
    stacked = any(weight.dim() == 3 for weight in find_blocks(model).parameters())
    without = "; experts get none" if stacked else ""
    return f"beside {adapted_share(model, targets):.0%} of the blocks' weights: {names}{without}"


def _exports(config: ExperimentConfig, facts: ModelFacts) -> str:
    """The type of what is written, beside that of what is read where this is another."""
    exported, stored = config.model.exported_dtype, str(facts.model_config.dtype or "").removeprefix("torch.")
    keeps = f" (model.export_dtype: {stored} keeps it)" if stored in DTYPES else ""
    return f"weights in {exported}" + (f", from files in {stored}{keeps}" if stored not in ("", exported) else "")


def _rungs(forecast: Forecast) -> str:
    """How many trials come to each rung where no scores are tied."""
    listed = (f"{one.trials} at {100 * one.share:g} % ({one.tokens:,} new tokens)" for one in forecast.rungs)
    return f"{', '.join(listed)}, and more where scores are tied"


def _costs(config: ExperimentConfig, forecast: Forecast) -> list[str]:
    """What the search costs, as far as that is known."""
    budget, hours = config.search.budget, forecast.accelerator_hours
    retraining, resources = config.retraining, config.resources
    lines = [f"tokens      {forecast.tokens:,} in all"]
    if hours is None or forecast.hours is None:
        lines.append(f"cost        speed {forecast.speeds.source}")
    else:
        price = budget.hourly_price if budget else None
        cost = "" if price is None else f"; they cost {_amount(hours * price)} at {price:g} an hour"
        lines += [
            f"speed       {forecast.speeds.source}",
            f"cost        about {_amount(hours)} accelerator-hours, {_amount(forecast.hours)} hours of training with "
            f"{config.search.max_concurrent_trials} trial(s) at a time{cost}",
        ]
    if hours is not None and forecast.tokens:  # of instructions the epochs count
        apart = retraining.checkpoint_tokens or max(retraining.budgets) // 3
        lost = hours * apart / forecast.tokens / resources.accelerators
        lines.append(
            f"checkpoints at most {apart:,} tokens apart, {_amount(lost)} hours of training: so much may be lost "
            "with a worker (retraining.checkpoint_tokens)"
        )
    lines.append(f"uncounted   {'; '.join(forecast.notes)}")
    if budget:
        lines.append(f"budget      {_budget(budget, forecast)}")
    lines.append(f"storage     {_storage(forecast, free_bytes(config.storage.url))}")
    return lines


def _storage(forecast: Forecast, free: int | None) -> str:
    needed = f"{_size(forecast.model_bytes)} of models that stay, {_size(forecast.checkpoint_bytes)} of checkpoints"
    if free is None:
        return f"{needed} at a time"
    scarce = free < forecast.model_bytes + forecast.checkpoint_bytes
    return f"{needed} at a time; {'only ' * scarce}{_size(free)} are free"


def _budget(budget: BudgetConfig, forecast: Forecast) -> str:
    caps = {name: value for name, value in budget if name != "hourly_price" and value is not None}
    needed = {"accelerator_hours": forecast.accelerator_hours, "hours": forecast.hours}
    if forecast.accelerator_hours is not None and budget.hourly_price is not None:
        needed["cost"] = forecast.accelerator_hours * budget.hourly_price
    short = [name for name, cap in caps.items() if (needed.get(name) or 0.0) > cap]
    listed = ", ".join(f"{name} {_amount(value)}" for name, value in caps.items()) or "no limit"
    return listed + (f"; trials that would pass {' and '.join(short)} will be left out" if short else "")


def _memory(config: ExperimentConfig, forecast: Forecast) -> list[str]:
    """The estimated peak of each kind of process that has a GPU, beside what the GPU has."""
    resources, has = config.resources, forecast.gpu_memory
    kinds = (
        (
            "worker", resources.gpus_per_worker, forecast.memory, "weights, gradients and optimiser state",
            "a smaller retraining.micro_batch_size or activation_checkpointing",
        ),
        ("evaluator", resources.gpus_per_evaluator, forecast.evaluator, "weights", "a smaller evaluation.batch_size"),
        ("scoring task", resources.gpus_per_scorer, forecast.scorer, "weights", "a smaller scoring_memory_gib"),
    )  # fmt: skip
    lines = []
    for name, gpus, needs, lasting, help in kinds:
        if gpus and needs is not None:
            line = f"about {_size(needs.peak)} at the peak of each {name}, {_size(needs.lasting)} of it {lasting}"
            if has is not None:
                room = gpu_share(has, gpus)
                line += f", of {_size(room)}"
                line += f"; it may not fit: set {help}" if needs.peak > room else ""
            lines.append(f"GPU memory  {line}")
    return [*lines, *["GPU memory  resources.accelerator_memory_gib is not given"][: bool(lines) and has is None]]


def _size(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / 2**20:,.1f} MiB"


def _amount(number: float) -> str:
    """With three digits that count, and without an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _range(counts: tuple[int, ...]) -> str:
    """`6`, or `5 to 7` where it depends on which blocks go."""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _texts(roles: TextRoles) -> list[str]:
    lines = []
    for name, documents in (
        ("scores on", roles.calibration), ("trains on", roles.train), ("selects on", roles.selection),
        ("reports on", roles.report),
    ):  # fmt: skip
        nothing = "nothing: no report texts" if name == "reports on" else "nothing"
        texts = ", ".join(f"{text.source.label} ({text.part})" for text in documents) or nothing
        lines.append(f"{name:<12}{texts}")
    return lines


def _removed(unit: PruneUnit, facts: ModelFacts) -> str:
    if unit in ("width", "weight"):
        asked = dict.fromkeys(one.target.name.replace("%", " %") for one in facts.requests if one.unit == unit)
        return f"{', '.join(asked)}: {'heads and channels' if unit == 'width' else 'single weights'}"
    counts = [
        f"{_range(one.counts)} ({one.target.name.replace('%', ' %')})" for one in facts.requests if one.unit == unit
    ]
    title = {"block": "blocks", "sublayer": "sub-layers"}[unit]
    return f"{', '.join(counts)} of {num_units(unit, facts.num_blocks)} {title}"


def describe_search(config: ExperimentConfig, facts: Facts | Outline, store: Store, forecast: Forecast) -> str:
    """Plain text: trials, tokens, costs, texts and where results go."""
    retraining, resources = config.retraining, config.resources
    counts = "; ".join(_removed(unit, facts) for unit in facts.counts)
    texts = ", ".join(
        f"{one.num_sequences} x {one.sequence_length} tokens of {one.label}"
        for one in (config.calibrations if config.reads_calibration else ())
    )
    lines = [
        f"experiment  {config.experiment} in {store.experiment_url(config.experiment)}",
        f"model       {config.model.path}: {facts.num_blocks} blocks",
        f"scoring     {', '.join(config.criteria)}{' on ' if texts else ''}{texts}",
        f"removes     {counts}",
        f"trials      at most {forecast.max_trials}; criteria that choose the same blocks share one",
        f"training    {', '.join(retraining.methods)}: {_budgets(retraining)}",
    ]
    if config.search.trials is not None:
        lines.append(f"samples     {config.search.trials} trials by Optuna, the sizes in turn")
        lines += [f"samples     {field}: {axis}" for field, axis in config.ranges.items()]
    if config.search.rounds != (1,):
        lines.append(f"rounds      {', '.join(map(str, config.search.rounds))}: blocks go at once, or a part in each")
    if config.search.rungs:
        lines.append(f"rungs       {_rungs(forecast)}")
    lines += _costs(config, forecast) if retraining.runs else []
    lines += _memory(config, forecast)
    lines += [f"adapters    {_adapters(adapters, facts)}" for adapters in retraining.adapters]
    lines += _texts(facts.roles) if isinstance(facts, Facts) else []
    if config.search.metric != PERPLEXITY:
        lines.append(f"chooses by  {objective(config.search).title}, measured for every trial")
    if config.evaluation.report.tasks:
        tasks = ", ".join(task.task for task in config.evaluation.report.tasks)
        lines.append(f"tasks       {tasks} for the dense model, the best of each size and the controls")
    lines.append(f"exports     {_exports(config, facts)}")
    workers = f"{resources.min_workers} to {resources.max_workers}" if resources.elastic else resources.max_workers
    lines.append(
        f"machines    {config.search.max_concurrent_trials} trial(s) at a time, each {workers} worker(s) x "
        f"{resources.cpus_per_worker:g} CPU, {resources.gpus_per_worker:g} GPU; {resources.evaluators} evaluator(s)"
    )
    lines += [f"unchecked   {one}" for one in facts.unchecked] if isinstance(facts, Outline) else []
    return "\n".join(lines)
