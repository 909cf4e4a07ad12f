"""A view is the dense model with blocks missing, and what leaves the system loads in plain transformers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from jobs.assets.tiny import byte_tokenizer
from shortened_llm.errors import BadInputError
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.directory import load_config
from shortened_llm.models.export import ExportError, export_view, probe_tokens, verify_export
from shortened_llm.models.load import load_model
from shortened_llm.models.view import size_of
from shortened_llm.records import ModelRef, Size
from tests.conftest import SaveModel, keeping, reference_to
from tests.models.families import FAMILIES, INDEXED

KEPT = (0, 2, 3, 5)
ALL = FAMILIES | INDEXED
EMBEDDINGS = "model.embed_tokens.weight"


class Passing(nn.Module):
    """Hands its input on; the reference for a removed block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states


def bypassed_logits(model: PreTrainedModel, kept: tuple[int, ...], tokens: torch.Tensor) -> torch.Tensor:
    blocks = find_blocks(model)
    for index in range(len(blocks)):
        if index not in kept:
            blocks[index] = Passing(blocks[index])
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("kept", [KEPT, (1, 4, 5)])
@pytest.mark.parametrize("family", ALL)
def test_a_view_has_the_logits_of_the_dense_model_without_the_blocks(
    family: str, kept: tuple[int, ...], save_random_model: SaveModel
) -> None:
    model, ref = save_random_model(ALL[family])
    tokens = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    view = load_model(ref.view(keeping(kept)), "float32")
    with torch.inference_mode():
        logits = view(input_ids=tokens, use_cache=False).logits
    assert torch.equal(logits, bypassed_logits(model, kept, tokens))
    assert len(find_blocks(view)) == len(kept)


def exported(ref: ModelRef, directory: Path) -> PreTrainedModel:
    """Export a view in float32; returns it as `load_model` gives it."""
    byte_tokenizer().save_pretrained(ref.url)
    export_view(ref, directory, "float32")
    return load_model(ref, "float32")


@pytest.mark.parametrize("family", ALL)
def test_an_exported_view_reloads_bit_for_bit_and_generates(
    family: str, save_random_model: SaveModel, tmp_path: Path
) -> None:
    _, ref = save_random_model(ALL[family])
    view = exported(ref.view(keeping(KEPT)), tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = probe_tokens(97)
    with torch.inference_mode():
        assert torch.equal(reloaded(input_ids=tokens).logits, view(input_ids=tokens).logits)
        cached = reloaded.generate(tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=True)
        plain = reloaded.generate(tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    assert reloaded.config.num_hidden_layers == len(KEPT)


PLAIN_TRANSFORMERS = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

for directory in sys.argv[1:]:
    expected = load_file(directory + "/expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(directory + "/model", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.equal(model(input_ids=expected["tokens"]).logits, expected["logits"]), directory
        assert model.generate(expected["tokens"], max_new_tokens=4, min_new_tokens=4).shape[1] == 20
assert not [name for name in sys.modules if name.startswith("shortened_llm")]
"""


def test_another_process_reloads_views_without_this_package(save_random_model: SaveModel, tmp_path: Path) -> None:
    families = ("llama_tied", "gemma3", "qwen2_window", "qwen3_moe_step")
    tokens = probe_tokens(97)
    for family in families:
        _, ref = save_random_model(ALL[family])
        view = exported(ref.view(keeping(KEPT)), tmp_path / family / "model")
        with torch.inference_mode():
            expected = {"tokens": tokens, "logits": view(input_ids=tokens).logits}
        save_file(expected, tmp_path / family / "expected.safetensors")
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS, *(str(tmp_path / family) for family in families)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("family", ["llama_tied", "mixtral"])
def test_the_proof_of_an_export_can_fail(family: str, save_random_model: SaveModel, tmp_path: Path) -> None:
    _, ref = save_random_model(FAMILIES[family])
    view, out = ref.view(keeping(KEPT)), tmp_path / "out"
    exported(view, out)
    weights, settings = (out / "model.safetensors").read_bytes(), (out / "config.json").read_text()
    (out / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ExportError, match="another value of "):
        verify_export(view, out, "float32")
    (out / "model.safetensors").write_bytes(weights)
    (out / "config.json").write_text(settings.replace('"rms_norm_eps": 1e-0', '"rms_norm_eps": 1e-1'))
    assert (out / "config.json").read_text() != settings
    with pytest.raises(ExportError, match="logits that differ by up to"):
        verify_export(view, out, "float32")
    (out / "config.json").write_text(settings)
    verify_export(view, out, "float32")
    save_file({"other": torch.zeros(1)}, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="lacks tensors of the view, or has others: "):
        verify_export(view, out, "float32")


def test_a_view_is_cast_and_tied_weights_are_written_once(change: Callable[..., ModelRef], tmp_path: Path) -> None:
    twice = change("llama_tied", lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDINGS].clone()}))
    byte_tokenizer().save_pretrained(twice.url)
    export_view(twice.view(keeping(KEPT)), tmp_path, "bfloat16")
    written = load_file(tmp_path / "model.safetensors")
    assert (EMBEDDINGS in written, "lm_head.weight" in written) == (True, False)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert load_config(tmp_path).dtype == torch.bfloat16


def test_what_transformers_keeps_in_float32_is_exported_so(save_random_model: SaveModel, tmp_path: Path) -> None:
    """The biases by which DeepSeek's router chooses experts; rounding them would choose others."""
    _, ref = save_random_model(ALL["deepseek_v3"])
    byte_tokenizer().save_pretrained(ref.url)
    export_view(ref.view(keeping(KEPT)), tmp_path / "out", "bfloat16")
    load_model(ref.view(keeping(KEPT)), "bfloat16").save_pretrained(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16, torch.float32}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_disk_without_room_is_told_before_anything_is_written(
    save_random_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(BadInputError, match=r"bytes are to be written, and its disk has 1,000 left"):
        export_view(ref, tmp_path / "out", "float32")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_from_headers_are_those_of_the_loaded_view(family: str, save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES[family])
    view = load_model(ref.view(keeping(KEPT)), "float32")
    size = size_of(load_config(Path(ref.url)), "bfloat16").without([block for block in range(6) if block not in KEPT])
    parameters = sum(parameter.numel() for parameter in view.parameters())
    assert size == Size(
        blocks=len(KEPT), parameters=parameters, nonzero_parameters=parameters, num_bytes=2 * parameters
    )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "bert"),
        ('{"model_type": "t5"}', "t5"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(tmp_path: Path, content: str | None, word: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInputError, match=word):
        load_config(tmp_path)


def test_a_transform_that_changes_nothing_is_none(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    assert ref.num_loaded_blocks == 6
    assert ref.view(keeping(range(6))) == ref
    assert ref.view(keeping((0, 1))).num_loaded_blocks == 2


def test_no_two_views_share_an_identity(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    subsets = [kept for count in range(1, 7) for kept in combinations(range(6), count)]
    identities = {fingerprint(ref.view(keeping(kept)).identity) for kept in subsets}
    assert len(identities) == len(subsets) == 63


def test_an_exported_model_says_what_was_done_to_the_dense_one(save_random_model: SaveModel) -> None:
    """Also one that was made in two steps, each with the indices of its own files."""
    _, ref = save_random_model(FAMILIES["llama"])
    once = ref.view(keeping((0, 2, 3, 5))).exported(url="once", fingerprint="once", files=())
    assert (once.num_blocks, once.transforms, once.shortening) == (4, (), keeping((0, 2, 3, 5)))
    twice = once.view(keeping((0, 3))).exported(url="twice", fingerprint="twice", files=())
    assert (twice.num_blocks, twice.origin) == (2, keeping((0, 5)))
    assert replace(once, origin=None).view(keeping((0,))).shortening is None


def test_settings_of_generation_of_the_user_s_own_are_kept_and_not_tried(
    save_random_model: SaveModel, tmp_path: Path
) -> None:
    """Some need more than a model and tokens, such as a tokenizer; they are the dense model's, not ours to prove."""
    model, _ = save_random_model(FAMILIES["llama"])
    model.save_pretrained(directory := tmp_path / "dense")
    byte_tokenizer().save_pretrained(directory)
    own = {"stop_strings": ["x"], "do_sample": True, "num_return_sequences": 2, "eos_token_id": 2}
    (directory / "generation_config.json").write_text(json.dumps(own))
    export_view(reference_to(directory).view(keeping(KEPT)), tmp_path / "exported", "float32")
    written = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    assert own.items() <= written.items()
