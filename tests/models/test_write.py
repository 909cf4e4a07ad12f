"""Weights that are written tensor by tensor are those that transformers writes at once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shortened_llm.models.load import load_model
from shortened_llm.models.view import empty_view
from shortened_llm.models.write import WeightWriter, stored_form, stored_layout, stored_names, write_settings
from shortened_llm.records import ModelRef
from tests.conftest import SaveModel, keeping
from tests.models.families import FAMILIES, INDEXED

ALL = FAMILIES | INDEXED
KEPT = (0, 2)


def written(ref: ModelRef, directory: Path, max_file_bytes: int) -> list[str]:
    """Write the model from one that has no weights and tensors that come one by one; names of the files, in order."""
    source = load_model(ref, "float32")
    plain, state, names = empty_view(ref, "bfloat16"), source.state_dict(), list[str]()
    writer = WeightWriter(stored_layout(plain), directory, lambda path: names.append(path.name), max_file_bytes)
    for name in stored_names(plain):
        for stored, value in stored_form(plain, name, state[name]).items():
            writer.add(stored, value)
    writer.close()
    plain.generation_config = source.generation_config
    write_settings(plain, "bfloat16", directory)
    return names


@pytest.mark.parametrize("max_file_bytes", [10**9, 20_000])
@pytest.mark.parametrize("family", ALL)
def test_files_are_those_of_save_pretrained(
    family: str, max_file_bytes: int, save_random_model: SaveModel, tmp_path: Path
) -> None:
    _, ref = save_random_model(ALL[family])
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    names = written(ref.view(keeping(KEPT)), ours, max_file_bytes)
    load_model(ref.view(keeping(KEPT)), "bfloat16").save_pretrained(theirs)
    wanted = {name: tensor for file in theirs.glob("*.safetensors") for name, tensor in load_file(file).items()}
    found = {name: tensor for file in ours.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    for settings in ("config.json", "generation_config.json"):
        assert json.loads((ours / settings).read_text()) == json.loads((theirs / settings).read_text())
    if max_file_bytes == 10**9:
        assert names == ["model.safetensors"]
    else:
        assert names[-1] == "model.safetensors.index.json"
        assert len(names) >= 3
        largest = max(tensor.nbytes for tensor in wanted.values())
        assert all((ours / name).stat().st_size < max(max_file_bytes, largest) + 10_000 for name in names[:-1])
    AutoModelForCausalLM.from_pretrained(ours, dtype=torch.bfloat16, trust_remote_code=False)


def test_tensors_of_several_types_and_odd_sizes_are_read_back(tmp_path: Path) -> None:
    values = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "wide": torch.arange(5, dtype=torch.float32),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([[True], [False], [True]]),
        "none": torch.zeros(0, 4),
    }
    layout = {name: value.to("meta") for name, value in values.items()}
    writer = WeightWriter(layout, tmp_path, lambda _: None)
    for name, value in values.items():
        writer.add(name, value.to(torch.float64))
    writer.close()
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value), name


def test_a_full_disk_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    writer = WeightWriter({"weight": torch.empty(2**16, device="meta")}, tmp_path, lambda _: None)
    with pytest.raises(OSError, match=r"No space left on device: '.*model\.safetensors'"):
        writer.add("weight", torch.ones(2**16))
