"""The configurations for real models and machines: a dry run of each, from a directory with the model's config.json."""

import json
import re
import sys
from pathlib import Path

import pytest

from jobs import search
from jobs.assets.random_model import SHAPES
from jobs.cli import run
from jobs.config_file import read_config_file

CONFIGS = Path(__file__).parents[2] / "jobs/configs"
LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32_000, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA_31 = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
MODELS = {
    "gpu_smoke": {"model_type": "llama", **SHAPES["1b"], "max_position_embeddings": 4096},
    "llama2_7b": {"model_type": "llama", **LLAMA_7B},
    "vicuna_7b": {"model_type": "llama", **LLAMA_7B, "max_position_embeddings": 2048},
    "llama31_8b": {"model_type": "llama", **SHAPES["8b"], **LLAMA_31},
    "llama31_70b": {
        "model_type": "llama", **LLAMA_31, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "qwen3_8b": {
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
    },
}  # fmt: skip
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ONE_GPU = '[{"max_nodes": 1, "cpus": 16, "gpus": 1}]'


def test_machines_say_nothing_of_an_experiment() -> None:
    for file in (CONFIGS / "machines").glob("*.yaml"):
        assert read_config_file(file).keys() == {"resources"}, file


@pytest.mark.parametrize(
    ("name", "machines"),
    [
        ("gpu_smoke", None),
        ("llama2_7b", None),
        ("llama2_7b", "spot_a100"),
        ("vicuna_7b", "h100x8"),
        ("llama31_8b", "h100x8"),
        ("llama31_8b", "spot_a100"),
        ("qwen3_8b", "spot_a100"),
        ("llama31_70b", "h100x8"),
    ],
)
def test_it_fits_its_machines(
    name: str,
    machines: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = MODELS[name] | {"architectures": [ARCHITECTURES[MODELS[name]["model_type"]]]}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    files = [str(CONFIGS / f"{name}.yaml"), *([str(CONFIGS / f"machines/{machines}.yaml")] if machines else [])]
    flags = ["--model.path", str(tmp_path / "model"), "--storage.url", str(tmp_path / "results"), "--dry-run"]
    if name == "gpu_smoke":
        flags += ["--resources.node_groups", ONE_GPU, "--resources.accelerator_memory_gib", "79"]
    monkeypatch.setenv("SHORTENED_LLM_ASSETS", str(tmp_path / "assets"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "argv", ["search", *files, *flags])
    run(search.main)
    told = capsys.readouterr()
    # What an instruction run takes is not known before its pairs are counted.
    for process in ("worker", "evaluator", "scoring task")[name == "vicuna_7b" :]:
        assert re.search(rf"GPU memory +about [\d.]+ GiB at the peak of each {process}", told.out), told.out
    assert "it may not fit" not in told.out
    assert not (tmp_path / "results").exists()


def test_every_configuration_of_gpus_is_here() -> None:
    asks = {path.stem for path in CONFIGS.glob("*.yaml") if "gpus_per" in path.read_text()}
    assert asks == set(MODELS)
