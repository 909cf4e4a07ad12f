"""A model of which only the parts in use are in memory, and the models whose blocks cannot be walked."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from shortened_llm.errors import BadInputError
from shortened_llm.models.load import load_model
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.walk import BlockWalk
from tests.conftest import SaveModel, keeping
from tests.models.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_come_and_go(family: str, save_random_model: SaveModel) -> None:
    _, reference = save_random_model(FAMILIES[family])
    view = reference.view(keeping((0, 2, 3, 5)))
    whole = load_model(view, "float32")
    streamed = StreamedModel.open(view, "float32")
    seen = []
    for index, block in streamed.read_blocks([3, 0, 1]):
        in_memory = [i for i, b in enumerate(streamed.blocks) if not any(w.is_meta for w in b.parameters())]
        assert index in in_memory
        assert len(in_memory) <= 2
        expected = whole.base_model.get_submodule("layers")[index]
        for (name, weight), (_, other) in zip(block.named_parameters(), expected.named_parameters(), strict=True):
            assert torch.equal(weight, other), name
        seen.append(index)
    assert seen == [3, 0, 1]
    assert all(weight.is_meta for block in streamed.blocks for weight in block.parameters())


def test_reading_that_ends_early_frees_its_blocks(save_random_model: SaveModel) -> None:
    streamed = StreamedModel.open(save_random_model(FAMILIES["llama"])[1], "float32")
    reading = streamed.read_blocks(range(6))
    next(reading)
    reading.close()
    assert all(weight.is_meta for block in streamed.blocks for weight in block.parameters())


def test_a_weight_of_another_shape_is_refused(save_random_model: SaveModel) -> None:
    _, reference = save_random_model(FAMILIES["llama"])
    path = Path(reference.url) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(47, 32)
    save_file(tensors, path, metadata={"format": "pt"})
    streamed = StreamedModel.open(replace(reference, files=()), "float32")
    with pytest.raises(
        BadInputError, match=r"model.path: 1 tensors of .*layers.2.mlp.up_proj.weight, .*\(47, 32\) .*\(48, 32\)"
    ):
        list(streamed.read_blocks(range(6)))


def test_a_missing_head_is_refused(save_random_model: SaveModel) -> None:
    _, reference = save_random_model(FAMILIES["llama"])
    path = Path(reference.url) / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=r"model.path: .*lm_head.weight"):
        StreamedModel.open(replace(reference, files=()), "float32")


def changed_forward(model, change: str):
    """A Llama that does something between or around its blocks that a walk would miss."""

    def forward(inputs_embeds: torch.Tensor, **_: object):
        hidden = inputs_embeds
        rotary = model.rotary_emb(hidden, position_ids=torch.arange(hidden.shape[1])[None])
        for index, block in enumerate(model.layers):
            if change == "scales":
                hidden = hidden * 1.1
            if change == "skips" and index == 2:
                continue
            mask = hidden.mean() if change == "depends" else None
            hidden = block(hidden, attention_mask=mask, position_embeddings=rotary)
        return hidden

    return forward


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("scales", "the input of block 1 is not the output of block 0"),
        ("skips", "block 2 is never called"),
        ("depends", "block 0 is given something that depends on the text"),
    ],
)
def test_what_a_walk_would_miss_is_refused(change: str, words: str, save_random_model: SaveModel) -> None:
    streamed = StreamedModel.open(save_random_model(FAMILIES["llama"])[1], "float32")
    BlockWalk.of(streamed, 8)
    streamed.model.base_model.forward = changed_forward(streamed.model.base_model, change)
    with pytest.raises(BadInputError, match=rf"model.path: LlamaForCausalLM cannot be walked block by block: {words}"):
        BlockWalk.of(streamed, 8)


MEASURE = """
import sys, torch
from pathlib import Path
from shortened_llm.criteria.taylor import TaylorOptions
from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import prepare_cpu
from shortened_llm.models.directory import load_config
from shortened_llm.models.view import size_of
from shortened_llm.models.stream import StreamedModel
from shortened_llm.scoring.one_pass import KL, NLL, walk_statistics
from shortened_llm.scoring.taylor import measure_taylor
from tests.benchmarks.peak_memory import PeakMemory
from tests.conftest import keeping, reference_to

quiet_libraries()
prepare_cpu(2)
directory = Path(sys.argv[1])
reference = reference_to(directory)
tokens = torch.randint(4000, (4, 64), generator=torch.Generator().manual_seed(0))


def measure(model):
    streamed = StreamedModel.open(model, "float32")
    if sys.argv[2] == "taylor":
        measure_taylor(streamed, tokens, TaylorOptions(), memory_gib=None)
    else:
        walk_statistics(streamed, tokens, [NLL, KL], memory_gib=None)


measure(reference.view(keeping((0,))))  # what the libraries take once is not the model's
with PeakMemory() as memory:
    measure(reference)
states = 31 * tokens.numel() * 576 * 4
weights = size_of(load_config(directory), "float32").without(()).num_bytes
print((memory.bytes - states) / weights)
"""


@pytest.mark.parametrize("measured", ["walk", "taylor"])
def test_the_model_is_never_whole_in_memory(measured: str, save_random_model: SaveModel) -> None:
    """Anonymous memory above the hidden states stays below 15 % of the weights of a model of 30 blocks."""
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    _, reference = save_random_model(config)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, reference.url, measured], capture_output=True, text=True, check=True
    )
    share = float(ran.stdout.splitlines()[-1])
    assert 0 < share < 0.15
