"""Which results of trials are read back."""

from dataclasses import replace
from pathlib import Path

from shortened_llm.records import FileEntry
from shortened_llm.search.trial import TRIALS, read_result
from shortened_llm.storage.store import Store
from tests.reporting.experiments import plan, texts, trial


def test_a_result_whose_model_is_gone_is_made_again(local_store: Store, tmp_path: Path) -> None:
    one = trial("f1", plan((9, 10), ("ppl", 0.07)), before=texts(wiki=40.0), after=texts(wiki=30.0))
    assert one.result is not None
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"abc")
    files = (FileEntry(path=weights.name, num_bytes=3, sha256=""),)
    result = replace(one.result, model=replace(one.result.model, url=str(tmp_path), files=files))
    local_store.write(TRIALS, one.spec.fingerprint, result, identity={}, parents=())
    assert read_result(local_store, one.spec) == result
    weights.unlink()
    assert read_result(local_store, one.spec) is None
