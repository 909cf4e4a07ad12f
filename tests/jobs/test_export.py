"""From an experiment to a plain directory: of a view and of a retrained model; bad input writes nothing."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from jobs.cli import run
from jobs.export import main
from shortened_llm.config import parse_config
from shortened_llm.models.export import probe_tokens
from shortened_llm.models.load import load_model
from shortened_llm.records import Experiment, FileEntry, ModelRef, TrialResult
from shortened_llm.search.stored.experiment import write_experiment
from shortened_llm.storage.layout import TRIALS
from shortened_llm.storage.payload import describe_files, download_directory
from shortened_llm.storage.store import Store
from tests.reporting.experiments import experiment
from tests.search.pipeline import Pipeline, small

Export = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """Run the entry point; returns (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["job", *arguments])
        code = 0
        try:
            run(main)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def probed(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=probe_tokens(model.config.vocab_size)).logits


def logits(directory: Path) -> torch.Tensor:
    """By plain transformers."""
    return probed(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval())


@pytest.mark.usefixtures("process_group")
def test_a_view_and_a_retrained_model_become_plain_directories(
    store: Store, tiny_values: dict, tmp_path: Path, export: Export
) -> None:
    dense = Path(shutil.copytree(tiny_values["model"]["path"], tmp_path / "dense"))
    (dense / "LICENSE").write_text("do as you like")
    values = small(tiny_values) | {"model": {"path": str(dense), "dtype": "float32", "license": "mit"}}
    values["pruning"]["criteria"] = ["magnitude"]
    pipeline = Pipeline(parse_config(values), store)
    place = store.experiment_url("test")
    results = {}
    for number, spec in enumerate(pipeline.specs, start=1):
        pipeline.trial(spec)
        results[number] = store.read(TRIALS, spec.fingerprint, TrialResult)
    (bare,) = [number for number, result in results.items() if result and not result.runs]
    (trained,) = set(results) - {bare}

    out = tmp_path / "bare"
    (out / ".partial").mkdir(parents=True)  # of a process that was killed
    (out / ".partial" / "model.safetensors").write_bytes(b"half")
    code, stdout, stderr = export(place, "--trial", str(bare), "--to", str(out))
    assert (code, stdout.splitlines()[-1:]) == (0, [str(out)]), stderr
    assert "in float32" in stderr
    assert not (out / ".partial").exists()
    view = pipeline.dense.view(pipeline.specs[bare - 1].plan.transforms)
    assert torch.equal(logits(out), probed(load_model(view, "float32")))
    assert json.loads((out / "pruning.json").read_text())["method"] == "none"
    assert "It was not retrained." in (out / "README.md").read_text()
    assert (out / "LICENSE").read_text() == "do as you like"

    # The best of the only target, which is the retrained one, and to where the search stores.
    url = store.url + "/exported/best"
    code, stdout, stderr = export(place, "--to", url)
    assert (code, stdout.splitlines()[-1:]) == (0, [url]), stderr
    best = results[trained]
    assert best is not None
    assert best.after.mean_nll < best.before.mean_nll
    copy = download_directory(url, tmp_path / "best")
    assert set(best.model.files) <= set(describe_files(copy))
    facts = json.loads((copy / "pruning.json").read_text())
    assert (facts["method"], facts["base_license"]) == ("cpt", "mit")
    assert "| selection:" in (copy / "README.md").read_text(), "a score"
    assert torch.equal(logits(copy), probed(load_model(best.model, "float32")))

    # What is not as it was when it was recorded is not passed on.
    code, _, stderr = export(place, "--to", url)
    assert (code, "--to: " in stderr, "is not empty" in stderr) == (2, True, True)
    files = (replace(best.model.files[0], sha256="0" * 64), *best.model.files[1:])
    damaged = replace(best, model=replace(best.model, files=files))
    store.write(TRIALS, best.fingerprint, damaged, identity={}, parents=())
    code, _, stderr = export(place, "--trial", str(trained), "--to", str(tmp_path / "damaged"))
    assert (code, "does not have the hash of its record" in stderr) == (1, True)
    assert list((tmp_path / "damaged").iterdir()) == []
    if store.url.startswith("/"):
        weights = (dense / "model.safetensors").read_bytes()
        (dense / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        code, _, stderr = export(place, "--trial", str(bare), "--to", str(tmp_path / "changed"))
        assert (code, "model.safetensors has changed" in stderr) == (2, True)
        assert not (tmp_path / "changed").exists()


def without_files() -> Experiment:
    """A finished search whose models are gone."""
    full = experiment()
    gone = ModelRef(
        url="/no/such/model", fingerprint="a" * 16, num_blocks=24,
        files=(FileEntry(path="model.safetensors", num_bytes=1, sha256="0" * 64),),
    )  # fmt: skip
    results = [trial.result and replace(trial.result, model=gone) for trial in full.trials]
    trials = [replace(trial, result=result) for trial, result in zip(full.trials, results, strict=True)]
    return replace(full, trials=tuple(trials))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--target: give one of 0.2, 0.4, or --trial"]),
        (["--target", "0.3"], ["--target: 0.3 was not searched; allowed are 0.2, 0.4"]),
        (["--target", "20%"], ["--target", "20%"]),
        (["--target", "0.2", "--trial", "1"], ["not allowed with"]),
        (["--trial", "9"], ["--trial: 9 is no trial", "allowed are 1 to 6"]),
        (["--trial", "5"], ["--trial: 5, taylor 40% cpt", "is failed (OutOfMemoryError", "done are: 1, 2, 3, 4"]),
        (["--trial", "6"], ["--trial: 6, taylor 40% cpt", "is waiting; done are: 1, 2, 3, 4"]),
        (["--target", "0.2"], ["files are gone from /no/such/model"]),
    ],
)
def test_bad_input_writes_nothing(
    arguments: list[str], words: list[str], local_store: Store, tmp_path: Path, export: Export
) -> None:
    write_experiment(local_store, without_files())
    code, stdout, stderr = export(
        local_store.experiment_url("smollm2-20-40"), *arguments, "--to", str(tmp_path / "out")
    )
    assert (code, stdout) == (2, "")
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr
    assert not (tmp_path / "out").exists()


def test_a_target_without_a_result_and_no_experiment_are_told(
    local_store: Store, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = without_files()
    by_taylor = [trial for trial in full.trials if trial.result is None]
    write_experiment(local_store, replace(full, trials=tuple(by_taylor)))
    code, _, stderr = export("smollm2-20-40", "--to", "out")  # a name below ./results, and its only target
    assert (code, "no trial of 0.4 has a selection score (1 waiting, 1 failed)" in stderr) == (2, True), stderr
    code, _, stderr = export("smollm3", "--to", "out")
    assert (code, "'smollm3' holds no experiment" in stderr) == (2, True), stderr


def test_a_place_that_is_taken_is_left_alone(local_store: Store, tmp_path: Path, export: Export) -> None:
    write_experiment(local_store, experiment())
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    file.write_text("mine")
    for place, words in ((taken, "is not empty"), (file, "cannot write to"), (file / "below", "cannot write to")):
        arguments = [local_store.experiment_url("smollm2-20-40"), "--trial", "1", "--to", str(place)]
        code, stdout, stderr = export(*arguments)
        assert (code, stdout) == (2, "")
        assert stderr.startswith("error: --to: ")
        assert words in stderr
    assert [path.read_text() for path in (taken / "mine", file)] == ["mine", "mine"]
