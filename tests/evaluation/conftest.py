"""Shared by the tests of tasks."""

from pathlib import Path

import pytest

from shortened_llm.records import ModelRef
from tests.conftest import reference_to
from tests.evaluation.local_tasks import write_tasks


@pytest.fixture(scope="module")
def task_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    write_tasks(directory)
    return directory


@pytest.fixture(scope="module")
def model(tiny_assets: Path) -> ModelRef:
    return reference_to(tiny_assets / "model")
