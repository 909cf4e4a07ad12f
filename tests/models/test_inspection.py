"""What a model's files are is told from config.json and tensor headers, before anything is spent: alike for a
directory, a URL and the hub, and no code that lies beside the weights ever runs."""

import ast
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, LlamaConfig

import shortened_llm
from jobs.assets.tiny import byte_tokenizer
from shortened_llm.config import ModelConfig
from shortened_llm.errors import BadInputError
from shortened_llm.models.load import load_model
from shortened_llm.models.stage import inspect_model
from shortened_llm.models.view import view_config
from shortened_llm.storage.payload import upload_directory
from tests.conftest import SaveModel, reference_to
from tests.models.families import COMMON, INDEXED
from tests.s3_server import S3Server

SMALL = {**COMMON, "vocab_size": 257, "eos_token_id": 256}
HEAD, DOWN = "lm_head.weight", "model.layers.1.mlp.down_proj.weight"

LOOK = """
import sys
from shortened_llm.models.stage import BadInputError, ModelConfig, inspect_model
for path in sys.argv[1:]:
    try:
        inspect_model(ModelConfig(path=path))
    except BadInputError as error:
        print("refused:", error)
"""

Tensors = dict[str, torch.Tensor]


@pytest.fixture(params=["directory", "url"])
def inspect(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], object]:
    """Inspect a model where it lies, and behind a URL, of which only headers are read."""

    def run(directory: Path) -> object:
        if request.param == "directory":
            return inspect_model(ModelConfig(path=str(directory)))
        server: S3Server = request.getfixturevalue("s3_server")
        url = f"s3://{server.bucket}/inspected/{tmp_path.name}"
        upload_directory(directory, url)
        return inspect_model(ModelConfig(path=url))

    return run


@pytest.fixture
def save(save_random_model: SaveModel) -> Callable[..., Path]:
    """A Llama with a tokenizer, whose config.json and tensors were changed."""

    def run(
        values: dict | None = None, edit: Callable[[Tensors], object] = lambda tensors: None, **sizes: object
    ) -> Path:
        _, ref = save_random_model(LlamaConfig(**{**SMALL, **sizes}))
        directory = Path(ref.url)
        byte_tokenizer().save_pretrained(directory)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **(values or {})}))
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return run


def to(name: str, dtype: torch.dtype) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def beside(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.ones(1)})


@pytest.mark.parametrize(
    ("values", "edit", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, None, ["quantization_config", "full-precision"]),
        ({"compression_config": {"format": "int-quantized"}}, None, ["compression_config", "full-precision"]),
        ({}, to(DOWN, torch.float8_e4m3fn), [DOWN, "F8_E4M3", "full-precision"]),
        ({}, to(DOWN, torch.int8), [DOWN, "I8", "full-precision"]),
        ({}, to(DOWN, torch.float64), [DOWN, "F64", "16 or 32 bits"]),
        ({}, beside("model.layers.1.mlp.down_proj.weight_scale_inv"), ["weight_scale_inv", "block 1", "quantisation"]),
        ({}, beside("model.layers.1.mlp.down_proj.lora_A.weight"), ["lora_A", "without adapters"]),
        ({}, lambda tensors: tensors.pop(HEAD), ["lacks 1 tensors", HEAD]),
        ({}, lambda tensors: tensors.pop(DOWN), ["lacks 1 tensors", DOWN]),
        ({"intermediate_size": 56}, None, ["another shape", "mlp.down_proj.weight", "(32, 48) instead of (32, 56)"]),
        ({"num_hidden_layers": 7}, None, ["cannot tell the 7 blocks", "{'model.layers': 6}"]),
        ({"vocab_size": 256}, lambda tensors: _cut_rows(tensors, 256), ["eos_token", "id 256", "from 0 to 255"]),
        ({"num_attention_heads": "many"}, None, ["config.json", "transformers reads"]),
        ({"layer_types": ["full_attention"] * 9}, None, ["config.json", "layer_types"]),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}, None, ["auto_map", "never run"]),
    ],
)  # fmt: skip
def test_files_that_are_not_the_model_are_refused(
    inspect: Callable, save: Callable[..., Path], values: dict, edit: Callable | None, words: list[str]
) -> None:
    with pytest.raises(BadInputError, match=r"^model\.path: ") as refusal:
        inspect(save(values, edit or (lambda tensors: None)))
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _cut_rows(tensors: Tensors, rows: int) -> None:
    for name in (HEAD, "model.embed_tokens.weight"):
        tensors[name] = tensors[name][:rows].contiguous()


def test_two_heads_under_a_tie_are_refused(save: Callable[..., Path]) -> None:
    """Whether they differ stands in the files' content, which is on this machine or read when the model is staged."""
    directory = save(edit=lambda tensors: tensors.update({HEAD: torch.ones(257, 32)}))
    inspect_model(ModelConfig(path=str(directory)))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(BadInputError, match=r"two values for lm_head\.weight and model\.embed_tokens\.weight"):
        inspect_model(ModelConfig(path=str(directory)))


def test_blocks_for_multi_token_prediction_are_left_out(
    inspect: Callable, save_random_model: SaveModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie behind the others in the files; the counter of them must not stay in the configuration."""
    monkeypatch.setattr(logging.getLogger("shortened_llm"), "propagate", True)
    values = {**INDEXED["deepseek_v3"].to_dict(), "vocab_size": 257, "eos_token_id": 256, "num_nextn_predict_layers": 1}
    model, ref = save_random_model(DeepseekV3Config(**values))
    directory = Path(ref.url)
    byte_tokenizer().save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    extra = {name.replace("layers.5.", "layers.6."): t.clone() for name, t in tensors.items() if "layers.5." in name}
    save_file({**tensors, **extra}, directory / "model.safetensors", metadata={"format": "pt"})
    inspect(directory)
    assert f"{len(extra)} tensors are left out" in caplog.text
    assert "multi-token prediction" in caplog.text
    assert "model.layers.6." in caplog.text
    ref = reference_to(directory)
    assert view_config(ref).num_nextn_predict_layers == 0
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(load_model(ref, "float32")(tokens).logits, model(tokens).logits)


def test_a_damaged_file_is_named(inspect: Callable, save: Callable[..., Path]) -> None:
    directory = save()
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInputError, match=r"model\.safetensors"):
        inspect(directory)
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(BadInputError, match=r"model\.safetensors"):
        inspect(directory)


def test_code_beside_a_model_never_runs_even_with_a_terminal(save: Callable[..., Path], tmp_path: Path) -> None:
    """transformers would ask at a terminal, and run the code when the answer is yes."""
    ran, directories = tmp_path / "ran", []
    for model_type in ("evil", "llama"):  # the configuration asks for code, the tokenizer does
        directory = save({"model_type": model_type, "auto_map": {"AutoConfig": "evil.EvilConfig"}})
        (directory / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass EvilConfig: ...\n")
        tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
        asks = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
        (directory / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **asks}))
        directories.append(str(directory))
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 4)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *directories], stdin=theirs, capture_output=True, text=True, timeout=300
    )
    os.close(ours)
    os.close(theirs)
    assert done.stdout.count("refused: model.path: ") == 2, done
    assert "[y/N]" not in done.stdout + done.stderr
    assert not ran.exists()


def test_no_call_lets_transformers_ask_about_code() -> None:
    calls = []
    for file in Path(shortened_llm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("Auto"):
                calls.append((file.name, ast.unparse(node)))
    assert len(calls) >= 6
    assert not [call for call in calls if "trust_remote_code=False" not in call[1]]
