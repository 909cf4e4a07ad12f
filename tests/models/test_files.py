"""Damaged and incomplete model files are refused by name; nothing is filled with random numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.files import INDEX_NAME, SINGLE_NAME, open_tensor_files
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import fill_shards
from shortened_llm.models.view import empty_view
from shortened_llm.records import ModelRef
from tests.conftest import SaveModel, keeping
from tests.models.families import FAMILIES

UP = "model.layers.3.mlp.up_proj.weight"


def load_by_filling(ref: ModelRef, dtype: str) -> PreTrainedModel:
    """What training workers do, without shards."""
    model = empty_view(ref, dtype)
    fill_shards(model, ref, device="cpu")
    return model


Load = Callable[[ModelRef, str], PreTrainedModel]
both_ways = pytest.mark.parametrize("load", [load_model, load_by_filling])


@pytest.fixture
def sharded(save_random_model: SaveModel) -> Path:
    """A model in two files with an index."""
    model, ref = save_random_model(FAMILIES["llama"])
    directory = Path(ref.url)
    (directory / SINGLE_NAME).unlink()
    model.save_pretrained(directory, max_shard_size="60KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


def write_index(directory: Path, change: Callable[[dict], object]) -> dict:
    index = json.loads((directory / INDEX_NAME).read_text())
    change(index)
    (directory / INDEX_NAME).write_text(json.dumps(index))
    return index


def test_files_with_an_index_are_read(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text())
    files = {name: header.file for name, header in open_tensor_files(sharded).of.items()}
    assert files == index["weight_map"]


def test_an_index_that_names_a_missing_file_is_refused(sharded: Path) -> None:
    write_index(sharded, lambda index: index["weight_map"].update({UP: "absent.safetensors"}))
    with pytest.raises(BadInputError, match=r"model\.path.*names files that are missing: \['absent\.safetensors'\]"):
        open_tensor_files(sharded)


def test_an_index_that_names_a_tensor_its_file_lacks_is_refused(sharded: Path) -> None:
    write_index(
        sharded, lambda index: index["weight_map"].update({"model.extra": sorted(index["weight_map"].values())[0]})
    )
    with pytest.raises(
        BadInputError, match=r"model\.path.*names 1 tensors that their files lack, such as model\.extra"
    ):
        open_tensor_files(sharded)


def test_an_index_that_names_the_wrong_file_for_a_tensor_is_refused(sharded: Path) -> None:
    def swap(index: dict) -> None:
        files = sorted(set(index["weight_map"].values()))
        index["weight_map"][UP] = next(file for file in files if file != index["weight_map"][UP])

    write_index(sharded, swap)
    with pytest.raises(BadInputError, match=f"such as {UP}"):
        open_tensor_files(sharded)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "no JSON"),
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "weight_map"),
        (b"{}", "weight_map"),
        (b'{"weight_map": []}', "weight_map"),
        (b'{"weight_map": {}}', "weight_map"),
        (b'{"weight_map": {"a": 1}}', "weight_map"),
    ],
)
def test_a_damaged_index_is_refused(sharded: Path, content: bytes, words: str) -> None:
    (sharded / INDEX_NAME).write_bytes(content)
    with pytest.raises(BadInputError, match=rf"model\.path.*{INDEX_NAME}.*{words}"):
        open_tensor_files(sharded)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: b"<html>not found</html>" * 100,
        lambda content: content[:8] + b"x" + content[9:],
    ],
    ids=["half", "one byte short", "header cut", "empty", "another format", "header damaged"],
)
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes], save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    weights = Path(ref.url) / SINGLE_NAME
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(BadInputError, match=r"model\.path.*model\.safetensors is damaged"):
        open_tensor_files(Path(ref.url))


def test_a_directory_without_weights_is_refused(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    (Path(ref.url) / SINGLE_NAME).unlink()
    with pytest.raises(BadInputError, match="only safetensors weights"):
        open_tensor_files(Path(ref.url))


@both_ways
@pytest.mark.parametrize(
    ("family", "without", "named"),
    [
        ("llama", "lm_head.weight", r"lm_head\.weight"),
        ("llama", "model.embed_tokens.weight", r"model\.embed_tokens\.weight"),
        ("llama", "model.norm.weight", r"model\.norm\.weight"),
        ("llama_tied", "model.embed_tokens.weight", "embed_tokens"),
        ("llama", UP, UP),
        ("qwen3", "model.layers.5.self_attn.q_norm.weight", r"model\.layers\.5\.self_attn\.q_norm"),
        ("gpt_neox", "gpt_neox.layers.3.mlp.dense_h_to_4h.bias", r"layers\.3\.mlp\.dense_h_to_4h\.bias"),
        ("phi3", "model.layers.2.mlp.gate_up_proj.weight", r"layers\.2\.mlp\.gate_up_proj"),
        ("mixtral", "model.layers.3.block_sparse_moe.gate.weight", r"layers\.3\.mlp\.gate"),
        ("mixtral", "model.layers.3.block_sparse_moe.experts.2.w1.weight", "experts"),
        ("mixtral", "model.layers.3.block_sparse_moe.experts.3.w2.weight", r"layers\.3\.mlp\.experts\.down_proj"),
        ("qwen3_moe", "model.layers.3.mlp.experts.3.up_proj.weight", "experts"),
    ],
)
def test_missing_weights_are_refused_instead_of_made_up(
    family: str, without: str, named: str, load: Load, change: Callable[..., ModelRef]
) -> None:
    ref = change(family, lambda tensors: tensors.pop(without))
    for view in (ref, ref.view(keeping((0, 2, 3, 5)))):
        with pytest.raises(BadInputError, match=rf"model\.path.*{named}"):
            load(view, "float32")


@both_ways
def test_weights_of_removed_blocks_may_be_missing(load: Load, change: Callable[..., ModelRef]) -> None:
    ref = change("llama", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    load(ref.view(keeping((0, 2, 3, 5))), "float32")


@both_ways
def test_a_tied_head_need_not_be_in_the_files(load: Load, change: Callable[..., ModelRef]) -> None:
    ref = change("llama_tied", lambda tensors: tensors.pop("lm_head.weight", None))
    model = load(ref, "float32")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@both_ways
def test_weights_of_another_shape_are_refused(load: Load, change: Callable[..., ModelRef]) -> None:
    ref = change("llama", lambda tensors: tensors.update({UP: torch.zeros(3, 32)}))
    with pytest.raises(BadInputError, match=rf"model\.path.*{UP}, which has \(3, 32\) instead of \(48, 32\)"):
        load(ref.view(keeping((0, 2, 3, 5))), "float32")
