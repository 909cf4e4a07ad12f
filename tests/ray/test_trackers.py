"""Trackers through Ray's integrations, where their packages are installed: they are no part of the development set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.conftest import ROOT

KEY = "0123456789abcdef0123456789abcdef01234567"


def run_trial(tracking: dict, directory: Path, environment: dict[str, str]) -> None:
    (directory / "tracking.json").write_text(json.dumps(tracking))
    command = [sys.executable, "-m", "tests.ray.tracking_driver", "tracking.json", str(directory / "results")]
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr


def test_mlflow_has_the_trial(tmp_path: Path, local_environment: dict[str, str]) -> None:
    pytest.importorskip("sqlalchemy", reason="mlflow keeps runs in a database")
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    run_trial({"mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/runs.db"}}, tmp_path, local_environment)
    experiment = client.get_experiment_by_name("my-search")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "ppl 25% cpt"
    assert run.data.params["trial/learning_rate"] == "0.001"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [1.0, 0.5, 1 / 3]


def test_wandb_has_the_trial_and_ray_has_no_key(tmp_path: Path, local_environment: dict[str, str]) -> None:
    pytest.importorskip("wandb")
    environment = {**local_environment, "WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "WANDB_DIR": str(tmp_path)}
    run_trial({"wandb": {"project": "shortened"}}, tmp_path, environment)
    (log,) = tmp_path.rglob("*.wandb")
    content = log.read_bytes()
    assert b"shortened" in content
    assert b"learning_rate" in content
    for directory in (tmp_path, Path(environment["RAY_TMPDIR"])):  # Ray's logs name every runtime environment
        for path in directory.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
