"""A view is the dense model with blocks missing, and what leaves the system loads in plain transformers."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.directory import load_config
from shortened_llm.models.export import ExportError, export_model, probe_tokens, verify_export
from shortened_llm.models.load import load_model
from shortened_llm.models.view import size_of
from shortened_llm.records import Size
from tests.conftest import SaveModel, keeping
from tests.models.families import FAMILIES, INDEXED

KEPT = (0, 2, 3, 5)
ALL = FAMILIES | INDEXED


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


class AnyTokenizer:
    """Stands for a tokenizer where only the model matters."""

    def save_pretrained(self, directory: Path) -> None:
        pass


@pytest.mark.parametrize("family", ALL)
def test_an_exported_view_reloads_bit_for_bit_and_generates(
    family: str, save_random_model: SaveModel, tmp_path: Path
) -> None:
    _, ref = save_random_model(ALL[family])
    view = load_model(ref.view(keeping(KEPT)), "float32")
    export_model(view, AnyTokenizer(), tmp_path / "out")  # type: ignore[arg-type]
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
        view = load_model(ref.view(keeping(KEPT)), "float32")
        export_model(view, AnyTokenizer(), tmp_path / family / "model")  # type: ignore[arg-type]
        with torch.inference_mode():
            expected = {"tokens": tokens, "logits": view(input_ids=tokens).logits}
        save_file(expected, tmp_path / family / "expected.safetensors")
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS, *(str(tmp_path / family) for family in families)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_proof_of_an_export_can_fail(tiny_model, tmp_path: Path) -> None:
    from shortened_llm.models.directory import load_tokenizer, model_directory

    view = load_model(tiny_model.view(keeping((0, 3, 7))), "float32")
    export_model(view, load_tokenizer(model_directory(tiny_model)), tmp_path)
    with torch.inference_mode():
        logits = view(input_ids=probe_tokens(view.config.vocab_size)).logits
    verify_export(tmp_path, logits, "float32")
    with pytest.raises(ExportError, match="differ"):
        verify_export(tmp_path, logits + 1e-4, "float32")


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
