"""Every operation outlasts faults of the store; what is permanent is answered at once."""

import pickle
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs
import pytest
import s3fs

from shortened_llm.errors import BadInputError
from shortened_llm.storage.clients import LastingS3FileSystem, ray_storage
from shortened_llm.storage.payload import download_directory, upload_directory
from shortened_llm.storage.retry import patience
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import (
    content_key,
    create_bytes,
    delete,
    download_file,
    exists,
    expand_glob,
    file_sizes,
    join,
    list_names,
    modified,
    read_bytes,
    upload_file,
    write_bytes,
)
from tests.faulty_proxy import FaultyProxy
from tests.s3_server import S3Server

OUTAGE_SECONDS = 3.0
CONTENT = bytes(range(256)) * 300
FAULTS: dict[str, Callable[[FaultyProxy], None]] = {
    "slow down": lambda proxy: proxy.answer(503, times=20),
    "internal error": lambda proxy: proxy.answer(500, every=2, times=20),
    "bad gateway": lambda proxy: proxy.answer(502, every=2, times=20),
    "lost answers": lambda proxy: proxy.cut(after=0, every=2, times=20),
    "answers cut short": lambda proxy: proxy.cut(after=300, every=2, times=20),
    "time-outs": lambda proxy: proxy.delay(30, every=3, times=5),
}


def operations(url: str, directory: Path) -> dict[str, Callable[[], object]]:
    """What each operation should return stands in `EXPECTED`."""
    (directory / "up.bin").write_bytes(CONTENT)

    def written() -> bytes:
        write_bytes(join(url, "written"), CONTENT)
        return read_bytes(join(url, "written"))

    def uploaded() -> bytes:
        upload_file(directory / "up.bin", join(url, "uploaded"))
        return read_bytes(join(url, "uploaded"))

    def deleted() -> bool:
        delete(join(url, "goes"))
        return exists(join(url, "goes", "deep", "file"))

    return {
        "read": lambda: read_bytes(join(url, "there", "file")),
        "write": written,
        "create": lambda: create_bytes(join(url, "created"), b"mine"),
        "create, taken": lambda: create_bytes(join(url, "there", "file"), b"mine"),
        "exists": lambda: exists(join(url, "there", "file")),
        "exists not": lambda: exists(join(url, "there", "nothing")),
        "delete": deleted,
        "modified": lambda: modified(join(url, "there", "file")).year > 2000,
        "names": lambda: list_names(join(url, "there")),
        "sizes": lambda: file_sizes(join(url, "there")),
        "upload": uploaded,
        "download": lambda: download_file(join(url, "there", "file"), directory / "down.bin").read_bytes(),
        "glob": lambda: expand_glob(join(url, "there", "*")),
        "one file": lambda: expand_glob(join(url, "there", "file")),
        "key": lambda: bool(content_key(join(url, "there", "file"))),
    }


def expected(url: str) -> dict[str, object]:
    return {
        "read": CONTENT,
        "write": CONTENT,
        "create": True,
        "create, taken": False,
        "exists": True,
        "exists not": False,
        "delete": False,
        "modified": True,
        "names": ["file"],
        "sizes": {"file": len(CONTENT)},
        "upload": CONTENT,
        "download": CONTENT,
        "glob": [join(url, "there", "file")],
        "one file": [join(url, "there", "file")],
        "key": True,
    }


@pytest.fixture
def prepared(faulty_store: Store) -> str:
    url = faulty_store.url
    for name in ("there", "goes/deep"):
        write_bytes(join(url, name, "file"), CONTENT)
    return url


def all_at_once(prepared: str, tmp_path: Path) -> dict[str, object]:
    every = operations(prepared, tmp_path)
    with ThreadPoolExecutor(len(every)) as threads:
        running = {name: threads.submit(operation) for name, operation in every.items()}
        return {name: one.result() for name, one in running.items()}


def test_every_operation_outlasts_an_outage(prepared: str, tmp_path: Path, proxy: FaultyProxy) -> None:
    started = time.monotonic()
    with proxy.outage(OUTAGE_SECONDS):
        assert all_at_once(prepared, tmp_path) == expected(prepared)
    assert OUTAGE_SECONDS < time.monotonic() - started < 30


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_outlasts(
    prepared: str, tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    FAULTS[fault](proxy)
    assert all_at_once(prepared, tmp_path) == expected(prepared)
    assert proxy.struck >= 5


def test_a_create_whose_answer_was_lost_is_one(faulty_store: Store, proxy: FaultyProxy) -> None:
    url = join(faulty_store.url, "1.json")
    proxy.cut(after=0, times=2, methods=("PUT",))
    assert create_bytes(url, b"mine")
    assert proxy.struck == 2
    assert not create_bytes(url, b"theirs")
    assert read_bytes(url) == b"mine"


@pytest.mark.parametrize("round_", range(3))
def test_a_race_over_lost_answers_has_one_winner(faulty_store: Store, proxy: FaultyProxy, round_: int) -> None:
    url = join(faulty_store.url, f"{round_}.json")
    proxy.cut(after=0, every=2, methods=("PUT",))
    contents = [f"driver {number}".encode() for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        won = list(threads.map(lambda content: create_bytes(url, content), contents))
    assert won.count(True) == 1
    proxy.calm()
    assert read_bytes(url) == contents[won.index(True)]


def test_a_large_file_goes_in_parts_and_each_is_tried_again(
    faulty_store: Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up/large.bin").write_bytes(secrets.token_bytes(2**20) * 110)
    proxy.answer(503, every=3, methods=("PUT",))
    upload_directory(tmp_path / "up", faulty_store.url)
    parts = [request for request in proxy.requests if "partNumber" in request.path]
    assert len(parts) == 3 + proxy.struck
    proxy.cut(after=2**20, every=3, times=2, methods=("GET",))
    download_directory(faulty_store.url, tmp_path / "down")
    assert (tmp_path / "down/large.bin").read_bytes() == (tmp_path / "up/large.bin").read_bytes()


def test_what_is_not_there_is_told_at_once(faulty_store: Store, proxy: FaultyProxy) -> None:
    started = time.monotonic()
    with pytest.raises(FileNotFoundError):
        read_bytes(join(faulty_store.url, "nothing"))
    with pytest.raises(FileNotFoundError):
        read_bytes("s3://no-such-bucket/file")
    assert time.monotonic() - started < 2
    assert len(proxy.requests) <= 4


def test_no_permission_is_told_at_once(
    faulty_store: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PermissionError):
        write_bytes(join(faulty_store.url, "file"), b"x")
    assert len(proxy.requests) == 1


def test_an_outage_beyond_patience_is_an_error(faulty_store: Store, proxy: FaultyProxy) -> None:
    proxy.down()
    started = time.monotonic()
    with pytest.raises(Exception, match="connect"), patience(2):
        read_bytes(join(faulty_store.url, "file"))
    assert time.monotonic() - started < 6
    proxy.up()


@pytest.mark.parametrize("fault", ["down", "slow", "erring"])
def test_a_submission_is_answered_soon(faulty_store: Store, proxy: FaultyProxy, fault: str) -> None:
    {"down": proxy.down, "slow": lambda: proxy.delay(60), "erring": lambda: proxy.answer(503)}[fault]()
    started = time.monotonic()
    with pytest.raises(BadInputError, match=r"storage\.url"):
        faulty_store.probe()
    assert time.monotonic() - started < 12
    proxy.up()


def test_ray_s_file_system_outlasts_an_outage_in_another_process(
    faulty_store: Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    options = ray_storage(faulty_store.url)
    fs = pickle.loads(pickle.dumps(options["storage_filesystem"]))  # as Ray hands it to workers
    assert isinstance(fs, LastingS3FileSystem)
    with proxy.outage(6):
        pyarrow.fs.copy_files(
            str(tmp_path / "file"), f"{options['storage_path']}/file", destination_filesystem=fs, use_threads=False
        )
    assert read_bytes(join(faulty_store.url, "file")) == CONTENT


def test_ray_s_state_holds_no_keys(faulty_store: Store, s3_server: S3Server) -> None:
    state = pickle.dumps(ray_storage(faulty_store.url))
    assert s3_server.secret_key.encode() not in state
    assert s3_server.access_key.encode() not in state


def test_ray_finds_other_storage_by_its_url() -> None:
    assert ray_storage("/results/run") == {"storage_path": "/results/run"}
    assert ray_storage("gs://bucket/run") == {"storage_path": "gs://bucket/run"}
