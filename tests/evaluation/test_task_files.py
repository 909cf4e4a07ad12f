"""What of the user's own files a task's score is stored under."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from shortened_llm.config import TaskConfig
from shortened_llm.evaluation.units import TaskUnit
from shortened_llm.fingerprint import fingerprint


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/rows.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "elsewhere/base.yaml").write_text("output_type: multiple_choice\n")
    directory = tmp_path / "tasks"
    (directory / "deeper").mkdir(parents=True)
    (directory / "_template_yaml").write_text("num_fewshot: 2\n")
    (directory / "utils.py").write_text("def text(doc):\n    return doc['text']\n")
    (directory / "deeper/data.jsonl").write_text("{}\n")
    values = {
        "task": "own",
        "include": ["_template_yaml", "../elsewhere/base.yaml"],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": [str(tmp_path / "elsewhere/*.jsonl")]}},
    }
    (directory / "own.yaml").write_text(yaml.safe_dump(values) + "doc_to_text: !function utils.text\n")
    return directory


def test_every_file_of_the_task_is_in_its_identity(directory: Path) -> None:
    unit = TaskUnit(config=TaskConfig(task="own"), directory=str(directory), limit=None)
    seen = {fingerprint(unit.identity)}
    files = ["own.yaml", "_template_yaml", "utils.py", "deeper/data.jsonl"]
    for path in (*files, "../elsewhere/rows.jsonl", "../elsewhere/base.yaml"):
        file = directory / path
        file.write_text(file.read_text() + "\n")
        assert fingerprint(unit.identity) not in seen, path
        seen.add(fingerprint(unit.identity))
    assert unit.identity["lm_eval"] == "0.4.13"


@pytest.mark.parametrize(
    "change",
    [
        lambda directory: (directory / "notes.md").write_text("x"),
        lambda directory: (directory / "__pycache__").mkdir() or (directory / "__pycache__/utils.pyc").write_text("x"),
        lambda directory: (directory / "odd.py").mkdir(),
    ],
)
def test_other_files_are_not(change: Callable[[Path], object], directory: Path) -> None:
    unit = TaskUnit(config=TaskConfig(task="own"), directory=str(directory), limit=None)
    before = unit.identity
    change(directory)
    assert unit.identity == before
    (directory / "broken.yaml").write_text("a: [")  # another task's: lm-eval speaks of it where it matters
    assert unit.identity != before
