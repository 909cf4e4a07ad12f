"""Tasks and groups of tasks through lm-eval, in process: the numbers of its command line with softmax_dtype=float32."""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import torch.utils.collect_env
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import LOCAL_SUFFIX, GenerationConfig, TaskConfig
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.evaluation.task_check import FIELD, load_task, task_manager
from shortened_llm.evaluation.task_items import join, task_items
from shortened_llm.records import TaskScore

STAGE_VERSION = 6
# lm-eval describes the machine in each task's results, and asks pip, the driver and others each time: 0.5 s and more.
torch.utils.collect_env.get_pretty_env_info = functools.cache(torch.utils.collect_env.get_pretty_env_info)

# Tasks of which the literature quotes acc, though they may have acc_norm.
QUOTED_BY_ACC = ("boolq", "piqa", "winogrande", "arc_easy")


def measure_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskConfig,
    *,
    directory: str | None,
    limit: int | None,
    batch_size: int,
    output: Path,
) -> TaskScore:
    """One model on one task or group that `check_tasks` passes; 0 shots unless the task or its settings say otherwise.

    Args:
        directory: the user's own task files.
        limit: items of each task; all unless given.
        batch_size: requests per forward pass.
        output: directory for lm-eval's results.json, and for samples_<task>.jsonl with every sample of each task.

    Raises:
        BadInputError: as `load_task`.
        NonFiniteLossError: the value or a log-likelihood is NaN or infinite.
    """
    import lm_eval  # 4 s
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    name = task.task
    own = copy.deepcopy(tokenizer)  # lm-eval sets a padding token where there is none
    # The log probability of a long answer in bfloat16 would be a whole number of nats.
    lm = HFLM(pretrained=model, tokenizer=own, batch_size=batch_size, softmax_dtype="float32")
    loader = _Loader(name, directory)
    tracker = EvaluationTracker(output_path=str(output / "results.json"))
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm,
        tasks=[name],
        task_manager=loader,
        num_fewshot=task.num_fewshot,
        limit=limit,
        apply_chat_template=task.chat_template,
        gen_kwargs=_generation_arguments(task.generation),
        evaluation_tracker=tracker,
        log_samples=True,
    )
    group = loader.loaded["groups"].get(name)
    leaves = group.get_all_tasks() if group else list(loader.loaded["tasks"].values())
    samples = results.pop("samples")
    values = results["results"][name]
    metric, filter_name = _quoted_metric(name, values)
    key = f"{metric},{filter_name}"
    value = float(values[key])
    if not math.isfinite(value):
        raise NonFiniteLossError(f"task {name}: {metric} is {value}")

    scored = [leaf for leaf in leaves if key in results["results"][leaf.task_name]]
    items = join([task_items(leaf, samples[leaf.task_name], metric, filter_name) for leaf in scored])
    is_mean = items.values and math.isclose(sum(items.values) / len(items.values), value, abs_tol=1e-9)
    _save(results, samples, tracker, output)
    return TaskScore(
        unit="",  # set by `store_score`
        task=name,
        metric=metric,
        value=value,
        standard_error=_finite(values.get(f"{metric}_stderr,{filter_name}")),
        num_items=sum(results["n-samples"][leaf.task_name]["effective"] for leaf in scored),
        protocol=_protocol(results, lm, group, scored, metric, filter_name),
        higher_is_better=all(leaf.higher_is_better().get(metric, True) for leaf in scored),
        item_values=items.values if is_mean else (),
        item_answers=items.answers,
        item_bits_per_byte=items.bits_per_byte,
    )


def _finite(value: object) -> float | None:
    """The number; None for what lm-eval writes where it has none, such as "N/A"."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


class _Loader:
    """Loads one task when lm-eval asks for it, which is after it has set its seeds."""

    def __init__(self, name: str, directory: str | None) -> None:
        self.task_index = task_manager(name, directory).task_index
        self.loaded: Any = None
        """lm-eval's `TaskDict`."""
        self._directory = directory

    def load(self, names: list[str]) -> Any:
        (name,) = names
        self.loaded = load_task(name, self._directory)
        return self.loaded


def _generation_arguments(generation: GenerationConfig | None) -> dict[str, object] | None:
    """Arguments as lm-eval names them; they win over the task's own, one by one."""
    if generation is None:
        return None
    arguments: dict[str, object] = {"do_sample": generation.temperature > 0, "temperature": generation.temperature}
    if generation.temperature > 0:
        arguments["top_p"] = generation.top_p
    if generation.max_tokens is not None:
        arguments["max_gen_toks"] = generation.max_tokens
    return arguments


def _quoted_metric(name: str, values: dict[str, object]) -> tuple[str, str]:
    """The metric to quote and its filter, of lm-eval's keys such as `exact_match,strict-match`.

    That is acc_norm where the task has it, else acc, else the first one.
    """
    filters: dict[str, list[str]] = {}
    for metric, filter_name in (key.split(",", 1) for key in values if "," in key):
        if not metric.endswith("_stderr"):
            filters.setdefault(metric, []).append(filter_name)
    if not filters:
        raise BadInputError(f"{FIELD}: {name!r} has no metric (it has {', '.join(values)})")
    order = ("acc", "acc_norm") if name.removesuffix(LOCAL_SUFFIX) in QUOTED_BY_ACC else ("acc_norm", "acc")
    quoted = next(metric for metric in (*order, *filters) if metric in filters)
    return quoted, "none" if "none" in filters[quoted] else filters[quoted][0]


def _protocol(results: dict[str, Any], lm: Any, group: Any, leaves: list[Any], metric: str, filter_name: str) -> str:
    """Everything about the measurement, but for the model, that changes its number."""
    import lm_eval

    names = [leaf.task_name for leaf in leaves]
    counts = [results["n-samples"][name] for name in names]
    effective, original = (sum(count[which] for count in counts) for which in ("effective", "original"))
    parts = [
        f"lm-eval {lm_eval.__version__}",
        "log probabilities in float32",
        *([f"group version {group.version}", f"{len(leaves)} tasks"] if group else []),
        f"task version {_alternatives(results['versions'][name] for name in names)}",
        f"{_alternatives(results['n-shot'][name] for name in names)} shots",
        f"filter {filter_name}" if filter_name != "none" else "",
        f"{'all' if effective == original else 'first'} {effective} items",
        "mean of the tasks, whatever their sizes" if group and not _weighs_items(group, metric) else "",
        f"chat template {results['chat_template_sha'][:8]}" if results["chat_template_sha"] else "",
        _generation(results, lm, names),
    ]
    return ", ".join(part for part in parts if part)


def _alternatives(values: Any) -> str:
    return "/".join(dict.fromkeys(str(value) for value in values))


def _weighs_items(group: Any, metric: str) -> bool:
    return all(aggregate.weight_by_size for aggregate in group.aggregate_metric_list if aggregate.metric == metric)


def _generation(results: dict[str, Any], lm: Any, names: list[str]) -> str:
    """Settings of generation as the tasks used them; stop sequences are part of a task's version."""
    from lm_eval.models.utils import normalize_gen_kwargs

    used = []
    for name in names:
        if results["configs"][name].get("output_type") == "generate_until":
            settings = normalize_gen_kwargs(results["configs"][name]["generation_kwargs"], lm.max_gen_toks)
            used.append(" ".join(f"{key}={settings[key]}" for key in sorted(settings) if key != "until"))
    return f"generation {_alternatives(used)}" if used else ""


def _save(results: dict[str, Any], samples: dict[str, list], tracker: Any, output: Path) -> None:
    """Write what lm-eval's command line would, under names without its time stamp."""
    results["config"]["model"] = "hf"  # else the name of our class
    general = tracker.general_config_tracker
    general.model_name = general.model_name_sanitized = results["config"]["model"]  # else a random one
    tracker.save_results_aggregated(results, samples)
    (output / f"results_{tracker.date_id}.json").rename(output / "results.json")
    for name, of_task in samples.items():
        tracker.save_results_samples(name, of_task)
        (output / f"samples_{name}_{tracker.date_id}.jsonl").rename(output / f"samples_{name}.jsonl")
