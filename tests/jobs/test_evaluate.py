"""Models scored beside the dense one, in one process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs
import yaml

from jobs.evaluate import main
from shortened_llm.models.export import export_view
from shortened_llm.records import EvaluatedModel, ModelRef, from_json
from tests.conftest import keeping
from tests.s3_server import S3Server


def evaluate(tmp_path: Path, values: dict, *arguments: str) -> subprocess.CompletedProcess:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "jobs.evaluate", str(tmp_path / "config.yaml"), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_pruned_model_is_scored_beside_the_dense_one(
    tiny_model: ModelRef, tiny_values: dict, tmp_path: Path, s3_server: S3Server
) -> None:
    """Under the name that its card gives it; then once more from a URL."""
    kept, directory = (0, 1, 4, 5, 6, 7), tmp_path / "pruned"
    export_view(tiny_model.view(keeping(kept)), directory, "float32")
    (directory / "pruning.json").write_text(
        json.dumps({"name": "by hand", "origin": [{"kind": "blocks", "kept": kept}]})
    )
    text = tiny_values["evaluation"]["report"]["perplexity"][0]
    tiny_values["evaluation"]["report"]["agreement"] = [{**text, "max_tokens": 512}]
    tiny_values["evaluation"]["efficiency"] = {"batch_sizes": [1], "output_lengths": [4], "runs": 1, "warmups": 0}
    done = evaluate(
        tmp_path, tiny_values, "--candidate", str(directory), "--efficiency", "--output", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    dense, pruned = (from_json(EvaluatedModel, line) for line in done.stdout.splitlines())
    assert (dense.ref.num_blocks, dense.ref.transforms) == (8, ())
    assert pruned.model == str(directory)
    assert pruned.selection.mean_nll > dense.selection.mean_nll
    assert pruned.report.perplexity[0].protocol == dense.report.perplexity[0].protocol
    assert pruned.report.agreement[0].kl > dense.report.agreement[0].kl == 0
    speed = pruned.report.efficiency
    assert speed is not None
    assert speed.model.weight_bytes < speed.dense.weight_bytes
    assert (speed.points[0].ideal_speed_up or 0) > 1
    assert f"{pruned.report.perplexity[0].perplexity:.4f}" in done.stderr
    assert len(json.loads((tmp_path / "out/scores.json").read_text())) == 2
    assert any(line.split()[-2:] == ["by", "hand"] for line in done.stderr.splitlines()), "the heading of its column"
    url = f"s3://{s3_server.bucket}/pruned"
    s3fs.S3FileSystem(skip_instance_cache=True).put(f"{directory}/", url, recursive=True)
    again = evaluate(tmp_path, tiny_values, "--candidate", url)
    scores = [from_json(EvaluatedModel, line) for line in again.stdout.splitlines()]
    assert [one.selection for one in scores] == [dense.selection, pruned.selection]


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (["--candidate", "/no/such/model"], {}, ["--candidate", "/no/such/model"]),
        (["--candidate", ""], {}, ["--candidate", "at least 1"]),
        ([], {"tasks": ["piqqa"]}, ["evaluation.report.tasks", "piqqa", "piqa"]),
        ([], {"tasks": ["piqa"]}, ["piqa", "evaluation.task_directory"]),
        ([], {"metrics": ["no_such_module:measure"]}, ["evaluation.report.metrics", "no_such_module"]),
        (["--efficiency"], {}, ["evaluation.efficiency.output_lengths", "512"]),
    ],
)
def test_bad_input_costs_nothing(
    arguments: list[str], changes: dict, words: list[str], tiny_values: dict, tmp_path: Path, command: Callable
) -> None:
    tiny_values["evaluation"]["report"] |= changes
    code, _, err = command(main, *arguments)
    assert code == 2, err
    for word in words:
        assert word in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "model.safetensors").unlink(), ["--candidate:", "safetensors"]),
        (lambda path: (path / "tokenizer.json").write_text("{"), ["--candidate:", "tokenizer"]),
        (lambda path: (path / "pruning.json").write_text("[]"), ["--candidate:", "pruning.json", "which blocks"]),
        (
            lambda path: (path / "pruning.json").write_text('{"origin": [{"kind": "blocks", "kept": [0, 1]}]}'),
            ["[0, 1]", "6 blocks"],
        ),
    ],
)
def test_a_model_that_cannot_be_scored_costs_nothing(
    damage: Callable[[Path], object], words: list[str], tiny_model: ModelRef, tmp_path: Path, command: Callable
) -> None:
    directory = tmp_path / "pruned"
    export_view(tiny_model.view(keeping((0, 1, 4, 5, 6, 7))), directory, "float32")
    damage(directory)
    code, _, err = command(main, "--candidate", str(directory))
    assert code == 2, err
    for word in words:
        assert word in err
    assert not (tmp_path / "results").exists()


def test_an_output_that_is_a_file_costs_nothing(tmp_path: Path, command: Callable) -> None:
    (tmp_path / "out").write_text("")
    code, _, err = command(main, "--output", str(tmp_path / "out"))
    assert code == 2, err
    assert "--output" in err
    assert not (tmp_path / "results").exists()
