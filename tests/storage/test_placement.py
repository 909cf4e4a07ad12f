"""Files come to their place together, config.json last."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shortened_llm.storage import placement
from shortened_llm.storage.placement import placed
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import find_files, read_bytes

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "templates/tool.jinja": b"text"}


def fill(directory: Path, content: dict[str, bytes]) -> None:
    for name, text in content.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(text)


def fail(url: str) -> None:
    with placed(url) as directory:
        fill(directory, FILES)
        raise RuntimeError("half")


def found(url: str) -> dict[str, bytes]:
    return {file.path: read_bytes(f"{url}/{file.path}") for file in find_files(url)}


def test_files_come_when_all_is_well_and_replace_older_weights(store: Store) -> None:
    with pytest.raises(RuntimeError, match="half"):
        fail(store.url)
    assert found(store.url) == {}
    with placed(store.url) as directory:
        fill(directory, FILES)
        assert "config.json" not in found(store.url)
    assert found(store.url) == FILES
    if store.url.startswith("/"):
        parts = {"config.json": b"{2}", "model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"i"}
        with placed(store.url) as directory:
            fill(directory, parts)
        assert found(store.url) == parts | {"templates/tool.jinja": b"text"}
        with placed(store.url) as directory:
            fill(directory, FILES)
        assert found(store.url) == FILES


def test_a_fault_of_an_upload_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.url.startswith("/"):
        pytest.skip("files of a local place are renamed")
    real, sent = placement.upload_file, list[str]()

    def upload(source: Path, url: str) -> None:
        sent.append(source.name)
        if source.name == "config.json":
            raise OSError("the store is full")
        real(source, url)

    monkeypatch.setattr(placement, "upload_file", upload)
    with pytest.raises(OSError, match="the store is full"), placed(store.url) as directory:
        fill(directory, FILES)
    assert sent == ["model.safetensors", "tool.jinja", "config.json"]
    assert found(store.url) == {}


KILLED = """
import sys, time
from shortened_llm.storage.placement import placed
with placed(sys.argv[1]) as directory:
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_bytes(b"half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_does_not_look_whole_and_is_replaced(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".partial"]
    with placed(str(tmp_path)) as directory:
        fill(directory, FILES)
    assert found(str(tmp_path)) == FILES
    assert not (tmp_path / ".partial").exists()
