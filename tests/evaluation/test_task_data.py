"""A score of hub data is stored under the data's commit."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from shortened_llm.config import TaskConfig
from shortened_llm.evaluation import task_data
from shortened_llm.evaluation.task_data import hub_commits
from shortened_llm.evaluation.units import TaskUnit
from shortened_llm.fingerprint import fingerprint

TASK = """
task: {name}
dataset_path: {path}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
{more}
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four tasks, and a cache that holds one data set of the hub; no hub."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, path, more in (
        ("of_hub", "someone/questions", ""),
        ("pinned", "someone/questions", "dataset_kwargs: {revision: v1}"),
        ("of_file", "json", "dataset_kwargs: {data_files: {validation: /nowhere.jsonl}}"),
        ("unknown", "someone/else", ""),
    ):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, path=path, more=more))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    task_data._commit.cache_clear()
    return tasks


def cached(directory: Path, commit: str) -> None:
    refs = directory.parent / "cache" / "datasets--someone--questions" / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    (refs / "main").write_text(commit)
    task_data._commit.cache_clear()


def test_data_that_may_change_is_pinned(directory: Path) -> None:
    cached(directory, "1" * 40)
    found = {name: hub_commits(name, str(directory)) for name in ("of_hub", "pinned", "of_file", "unknown")}
    assert found == {"of_hub": {"someone/questions": "1" * 40}, "pinned": {}, "of_file": {}, "unknown": {}}


def test_other_data_is_another_score(directory: Path) -> None:
    identities = set()
    for commit in ("1" * 40, "2" * 40):
        cached(directory, commit)
        unit = TaskUnit(
            config=TaskConfig(task="of_hub"), directory=str(directory), limit=None,
            hub_commits=hub_commits("of_hub", str(directory)),
        )  # fmt: skip
        identities.add(fingerprint(unit.identity))
    assert len(identities) == 2
