"""Zero-shot tasks through lm-eval, in process."""

import difflib
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import TaskConfig
from shortened_llm.errors import BadInputError
from shortened_llm.records import TaskScore

STAGE_VERSION = 1
# The metric that the literature quotes for each task; elsewhere acc_norm where the task has it, else its first one.
QUOTED_METRIC = {
    "boolq": "acc",
    "piqa": "acc",
    "winogrande": "acc",
    "arc_easy": "acc",
    "hellaswag": "acc_norm",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}


def check_tasks(tasks: tuple[TaskConfig, ...], directory: str | None) -> None:
    """Raises `BadInputError` for a task that neither lm-eval nor `directory` knows."""
    if not tasks:
        return
    if directory is not None and not Path(directory).is_dir():
        raise BadInputError(f"evaluation.task_directory: {directory!r} is no directory")
    known = _task_manager(directory).all_subtasks
    for name in (task.task for task in tasks):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            own = sorted(path.stem for path in Path(directory).glob("*.yaml")) if directory else []
            raise BadInputError(
                f"evaluation.report.tasks: unknown task {name!r}; "
                + (f"nearest: {', '.join(near)}" if near else f"lm-eval has {len(known)}: see `lm-eval ls tasks`")
                + (f"; in evaluation.task_directory: {', '.join(own)}" if own else "")
            )


def measure_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskConfig,
    *,
    directory: str | None,
    limit: int | None,
    batch_size: int,
) -> TaskScore:
    """Accuracy on one task, 0 shots unless the task says otherwise.

    Args:
        directory: the user's own task files.
        limit: items; all unless given.
    """
    import lm_eval  # 4 s
    from lm_eval.models.huggingface import HFLM

    name = task.task

    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=[name],
        task_manager=_task_manager(directory),
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    values = results["results"][name]
    metric = _metric(name, values)
    if metric is None:
        raise BadInputError(f"evaluation.report.tasks: {name!r} has no plain metric (it has {', '.join(values)})")
    error = values.get(f"{metric}_stderr,none")
    count = int(results["n-samples"][name]["effective"])
    return TaskScore(
        task=name,
        metric=metric,
        value=float(values[f"{metric},none"]),
        standard_error=float(error) if isinstance(error, (int, float)) else None,
        num_items=count,
        protocol=f"lm-eval {lm_eval.__version__}, task version {results['versions'][name]}, "
        f"{results['n-shot'][name]} shots, {'first ' if limit else 'all '}{count} items",
    )


def _metric(name: str, values: dict[str, object]) -> str | None:
    available = [key.removesuffix(",none") for key in values if key.endswith(",none") and "_stderr" not in key]
    quoted = QUOTED_METRIC.get(name.removesuffix("_local"))
    for metric in (quoted, "acc_norm", "acc"):
        if metric in available:
            return metric
    return available[0] if available else None


@lru_cache(maxsize=1)  # indexing lm-eval's own tasks takes seconds
def _task_manager(directory: str | None):  # type: ignore[no-untyped-def]
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=directory, include_defaults=True)
