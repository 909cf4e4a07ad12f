"""Trackers are asked for by configuration, need their package and a key, and are no part of an experiment."""

import importlib.util

import pytest

from shortened_llm.config import changed_keys, parse_config
from shortened_llm.errors import BadInputError
from shortened_llm.search.cluster.trackers import check_tracking

WANDB = {"wandb": {"project": "shortened"}}
MLFLOW = {"mlflow": {"tracking_uri": "sqlite:////tmp/runs.db"}}


@pytest.mark.parametrize("tracking", [WANDB, MLFLOW], ids=["wandb", "mlflow"])
def test_a_missing_package_is_named(tiny_values: dict, tracking: dict) -> None:
    (name,) = tracking
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(
        BadInputError, match=f"tracking.{name}: the package {name} is not installed; pip install {name}"
    ):
        check_tracking(parse_config(tiny_values | {"tracking": tracking}).tracking)


def test_a_tracker_leaves_the_experiment_what_it_was(tiny_values: dict) -> None:
    stored = parse_config(tiny_values).model_dump(mode="json")
    tracked = parse_config(tiny_values | {"tracking": WANDB | MLFLOW})
    assert changed_keys(stored, tracked) == {}
    assert changed_keys(tracked.model_dump(mode="json"), parse_config(tiny_values)) == {}


@pytest.mark.parametrize(
    ("tracking", "words"),
    [
        ({"wandb": {"project": "p", "api_key": "secret"}}, ["tracking.wandb.api_key", "unknown key"]),
        ({"mlflow": {"tracking_uri": "https://me:hunter2@mlflow"}}, ["tracking.mlflow.tracking_uri", "credentials"]),
        ({"mlflow": {"tracking_uri": "./mlruns"}}, ["tracking.mlflow.tracking_uri", "server or database"]),
        ({"mlfow": {}}, ["tracking.mlfow", "'mlflow'"]),
    ],
)
def test_bad_trackers_are_answered(tiny_values: dict, tracking: dict, words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_config(tiny_values | {"tracking": tracking})
    for word in words:
        assert word in str(caught.value)
    assert "hunter2" not in str(caught.value)
