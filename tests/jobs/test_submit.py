"""What a submitted job is sent."""

from pathlib import Path

import pytest

from jobs.submit import main, with_absolute_paths
from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.errors import BadInputError

ROOT = Path(__file__).parents[2]


def test_relative_paths_are_those_of_the_submitter(
    tiny_values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text('{"text": "a"}\n')
    tiny_values |= {"storage": {"url": "results"}, "model": {"path": "org/model"}}
    tiny_values["retraining"]["data"] = [{"path": "text.jsonl"}, {"path": "*.jsonl"}, {"path": "org/corpus"}]
    values = with_absolute_paths(dump(parse_config(tiny_values)), here=True)
    assert values["storage"] == {"url": f"{tmp_path}/results"}
    assert values["model"] == {"path": "org/model"}
    assert [source["path"] for source in values["retraining"]["data"]] == [
        f"{tmp_path}/text.jsonl", f"{tmp_path}/*.jsonl", "org/corpus",
    ]  # fmt: skip
    assert values["calibration"] == dump(parse_config(tiny_values))["calibration"]
    parse_config(values)


def test_the_default_storage_is_the_submitter_s(
    tiny_values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    del tiny_values["storage"]
    assert with_absolute_paths(dump(parse_config(tiny_values)), here=True)["storage"] == {"url": f"{tmp_path}/results"}


def test_another_machine_does_not_read_them(tiny_values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=r"storage.url: 'results' is a directory of this machine"):
        with_absolute_paths(dump(parse_config(tiny_values | {"storage": {"url": "results"}})), here=False)
    Path("text.jsonl").write_text('{"text": "a"}\n')
    tiny_values |= {"storage": {"url": "s3://bucket/x"}}
    tiny_values["calibration"] |= {"path": "text.jsonl"}
    with pytest.raises(BadInputError, match=r"calibration.path: 'text.jsonl'"):
        with_absolute_paths(dump(parse_config(tiny_values)), here=False)


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(BadInputError, match=r"--address: 'http://127.0.0.1:9'"):
        main([str(ROOT / "jobs/configs/tiny.yaml"), "--address", "http://127.0.0.1:9"])


def dump(config: ExperimentConfig) -> dict:
    return config.model_dump(mode="json", exclude_unset=True)
