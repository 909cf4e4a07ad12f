"""Finding lm-eval tasks by name, and refusing what cannot be measured before a model is loaded."""

import difflib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from shortened_llm.config import TaskConfig
from shortened_llm.errors import BadInputError, UnreachableError

FIELD = "evaluation"
"""The section that a task is of, where nobody knows the field."""
NAMES_SHOWN = 8


def check_tasks(
    tasks: tuple[TaskConfig, ...],
    directory: str | None,
    field: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Check what can be told from the names and files of tasks, without their data.

    Args:
        directory: the user's own task files.
        field: the field of the configuration that names the tasks, for messages.
        tokenizer: the model's, for tasks that ask for its chat template.

    Raises:
        BadInputError: a task or group that neither lm-eval nor `directory` knows, that has no score of its own, that
            needs more than a text model, or whose settings do not apply to it.
    """
    if tasks and directory is not None and not Path(directory).is_dir():
        raise BadInputError(f"evaluation.task_directory: {directory!r} is no directory")
    for task in tasks:
        index = task_manager(task.task, directory).task_index
        if task.task not in index:
            raise BadInputError(f"{field}: {_unknown(task.task, directory)}")
        leaves = list(task_settings(task.task, index))
        if fault := _fault(task, index[task.task], leaves):
            raise BadInputError(f"{field}: {task.task!r} {fault}")
        if task.chat_template and tokenizer is not None and tokenizer.chat_template is None:
            raise BadInputError(
                f"{field}: {task.task!r} has chat_template: true, but the model's tokenizer has no chat template; "
                "set it to false, or use the tokenizer of an instruction-tuned model"
            )


def check_has_bits_per_byte(name: str, directory: str | None, field: str) -> None:
    """Check that a task that `check_tasks` passed has gold answers whose bits can be counted.

    Raises:
        BadInputError: one of its leaves is no multiple-choice task.
    """
    leaves = task_settings(name, task_manager(name, directory).task_index)
    kinds = {"class" if "class" in leaf else leaf.get("output_type", "generate_until") for leaf in leaves}
    if not kinds <= {"class", "multiple_choice"}:
        listed = ", ".join(sorted(kinds))
        raise BadInputError(
            f"{field}: bits per byte of {name!r} are asked for, but it is no multiple-choice task (output_type "
            f"{listed}); leave /bits_per_byte out, or name another task"
        )


def load_task(name: str, directory: str | None, field: str = FIELD) -> Any:
    """lm-eval's `TaskDict` of a task or group that `check_tasks` passed, with its data.

    The data comes from the hub where it is not cached, which takes seconds to minutes.

    Raises:
        UnreachableError: the data cannot be read.
        BadInputError: the task's own code fails.
    """
    from datasets.exceptions import DatasetsError

    manager = task_manager(name, directory)
    try:
        return manager.load([name])
    except ImportError as error:
        raise BadInputError(f"{field}: {name!r} needs a package that is not installed: {error}") from error
    except (OSError, DatasetsError, RuntimeError) as error:  # RuntimeError: data sets that are scripts
        paths = sorted(
            {leaf["dataset_path"] for leaf in task_settings(name, manager.task_index) if leaf.get("dataset_path")}
        )
        raise UnreachableError(
            f"{field}: the data of {name!r} cannot be read, data set {_some(paths)} ({error}). To give it locally, put "
            "a task file into evaluation.task_directory, a copy of lm-eval's with another name and with "
            "dataset_path: json and dataset_kwargs: {data_files: {validation: /absolute/path.jsonl}}"
        ) from error
    except Exception as error:  # The task's own code and templates have run: they may raise anything.
        raise BadInputError(f"{field}: {name!r} cannot be set up: {type(error).__name__}: {error}") from error


def task_manager(name: str, directory: str | None) -> Any:
    """lm-eval's index of tasks: of `directory` alone where that suffices, since its own 14,000 files take 10 s."""
    if directory is not None:
        own = _index(directory, include_defaults=False)
        if name in own.task_index and all(task_settings(name, own.task_index)):
            return own
    return _index(directory, include_defaults=True)


@lru_cache(maxsize=4)
def _index(directory: str | None, *, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=directory, include_defaults=include_defaults)


def task_settings(name: str, index: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings of the tasks below a task, group or tag; empty ones for a member that the index does not have."""
    entry = index[name]
    yield from _settings(entry.cfg or {"task": sorted(entry.tags)}, index, {})


def _settings(values: dict[str, Any], index: dict[str, Any], overrides: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings as lm-eval resolves them: a group's go before those of its members."""
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES

    members = values.get("task")
    if not isinstance(members, list):
        known = {"dataset_path", "custom_dataset", "class"} & values.keys()
        yield values | overrides if known else {}
        return
    inherited = {key: value for key, value in values.items() if key not in GROUP_FIELD_NAMES} | overrides
    for member in members:
        own = {"task": member} if isinstance(member, str) else member
        name = own.get("group", own.get("task"))
        if name in index:
            settings = inherited | {key: value for key, value in own.items() if key not in ("task", "group")}
            yield from _settings(index[name].cfg or {"task": sorted(index[name].tags)}, index, settings)
        else:  # Written out in place.
            yield from _settings(own, index, inherited)


def _unknown(name: str, directory: str | None) -> str:
    index = _index(directory, include_defaults=True).task_index
    near = difflib.get_close_matches(name, index, n=3, cutoff=0.5)
    own = sorted(_index(directory, include_defaults=False).task_index) if directory else []
    return (
        f"unknown task or group {name!r}; "
        + (f"nearest: {', '.join(near)}" if near else f"lm-eval has {len(index)}: see `lm-eval ls tasks`")
        + (f"; in evaluation.task_directory: {_some(own)}" if own else "")
    )


def _some(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _fault(task: TaskConfig, entry: Any, leaves: list[dict[str, Any]]) -> str | None:
    """Why a task cannot be measured as asked for; a task that is a Python class tells nothing before it is loaded."""
    kind = entry.kind.name
    if kind == "TAG" or (kind == "GROUP" and not entry.cfg.get("aggregate_metric_list")):
        names = sorted({str(leaf.get("task")) for leaf in leaves})
        return f"is a {kind.lower()} that has no score of its own; list its tasks: {_some(names)}"
    if any(leaf.get("unsafe_code") for leaf in leaves):
        return "executes what the model writes; such tasks are not run"
    if any(leaf.get("doc_to_image") or leaf.get("doc_to_audio") for leaf in leaves):
        return "has images or sound; allowed are tasks of text alone"
    if task.num_fewshot and all(leaf.get("num_fewshot") == 0 for leaf in leaves):
        return f"has num_fewshot {task.num_fewshot}, but the task fixes it at 0; leave it out"
    kinds = {"class" if "class" in leaf else leaf.get("output_type", "generate_until") for leaf in leaves}
    if task.generation is not None and not kinds & {"class", "generate_until"}:
        listed = ", ".join(sorted(kinds))
        return f"has settings of generation, but it is no generative task (output_type {listed}); leave them out"
    return None
