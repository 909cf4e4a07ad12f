"""The dense model, from wherever it lies to where every node can read it, once."""

from pathlib import Path

import pytest
import torch

from shortened_llm.config import ModelConfig
from shortened_llm.errors import BadInputError
from shortened_llm.models import stage
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model
from shortened_llm.models.stage import inspect_model, stage_model
from shortened_llm.records import ModelRef
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import is_local, join, list_names
from tests.conftest import keeping
from tests.models.test_gguf import llama, write_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))


def stage_here(path: str, store: Store) -> ModelRef:
    return stage_model(ModelConfig(path=path), store)


def logits(ref: ModelRef) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(ref, "float32")(input_ids=torch.tensor([[5, 6, 7]])).logits


def test_a_local_directory_is_used_in_place_or_copied_to_remote_storage(tiny_assets: Path, store: Store) -> None:
    path = str(tiny_assets / "model")
    ref = stage_here(path, store)
    assert ref.num_blocks == 8
    assert (ref.url == path) == is_local(store.url)
    assert ref.url.startswith(path if is_local(store.url) else store.url)
    assert stage_here(path, store) == ref
    load_tokenizer(model_directory(ref))
    assert logits(ref.view(keeping((0, 7)))).shape == (1, 3, 257)


def test_a_model_at_a_url_is_fetched_once(
    tiny_assets: Path, s3_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{s3_server.bucket}/models/tiny-{tmp_path.name}"
    upload_directory(tiny_assets / "model", url)
    store = Store.at(str(tmp_path / "results"))
    ref = stage_here(url, store)
    assert torch.equal(logits(ref), logits(stage_here(str(tiny_assets / "model"), store)))
    monkeypatch.setattr(stage, "download_directory", lambda *_: pytest.fail("fetched again"))
    assert stage_here(url, store) == ref


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    model = llama(tied=True)
    write_gguf(file, model, architecture="llama")
    store = Store.at(str(tmp_path / "results"))
    config, tokenizer = inspect_model(ModelConfig(path=str(file)))
    assert (config.num_hidden_layers, tokenizer.eos_token_id) == (2, 256)
    ref = stage_here(str(file), store)
    with torch.inference_mode():
        torch.testing.assert_close(logits(ref), model(input_ids=torch.tensor([[5, 6, 7]])).logits)
    monkeypatch.setattr(stage, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert stage_here(str(file), store) == ref
    assert list_names(join(store.url, "models")) == [ref.fingerprint]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [("x.gguf", b"not gguf", "GGUF"), ("x.safetensors", b"", "is a file"), ("x/config.json", b"{}", "config.json")],
)
def test_what_is_no_model_is_refused(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    path = str(file.parent if name.endswith("config.json") else file)
    with pytest.raises(BadInputError, match=word):
        stage_here(path, Store.at(str(tmp_path / "results")))
    assert not (tmp_path / "results").exists()
