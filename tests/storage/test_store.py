"""Records: stored once, read back equal, never half there; on a directory and on S3."""

import datetime
import itertools
import os
import secrets
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import s3fs

from shortened_llm.errors import BadInputError
from shortened_llm.records import BlocksTransform, FileEntry, Payload, PerplexityScore
from shortened_llm.storage import payload
from shortened_llm.storage.payload import describe_files, has_files, local_directory, upload_directory
from shortened_llm.storage.store import DamagedRecordError, Store
from shortened_llm.storage.urls import create_bytes, delete, exists, find_files, join, list_names, write_bytes
from tests.s3_server import S3Server

SCORE = PerplexityScore(
    unit="ab", source="wiki", protocol="@128", perplexity=12.5, mean_nll=2.5, num_predictions=127, document_nll=(),
    document_predictions=(),
)  # fmt: skip


def test_a_record_is_read_back_equal(store: Store) -> None:
    assert store.read("evaluations", "ab12", PerplexityScore) is None
    store.write("evaluations", "ab12", SCORE, identity={"model": "x"}, parents=())
    assert store.read("evaluations", "ab12", PerplexityScore) == SCORE


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[]", b"{}", b'{"record": 3}'])
def test_what_is_no_such_record_is_named_and_counts_as_absent(
    content: bytes | None, local_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """None: the record of another kind."""
    local_store.write("evaluations", "ab12", SCORE, identity={}, parents=())
    file = Path(local_store.url) / "evaluations" / "ab12" / "record.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DamagedRecordError, match=str(file)):
        local_store.load("evaluations", "ab12", BlocksTransform)
    assert local_store.read("evaluations", "ab12", BlocksTransform) is None
    assert f"{file} is no record that this version reads" in caplog.text


def test_files_are_there_with_their_sizes_or_not(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "payload"
    directory.mkdir()
    for name, size in (("large", 1000), ("small", 10)):
        (directory / name).write_bytes(bytes(size))
    url = store.attempt_url("retrained", "ab12")
    payload = Payload(url=url, files=upload_directory(directory, url))
    assert has_files(payload)
    for name in ("large", "small"):
        write_bytes(join(url, name), bytes(9))
        assert not has_files(payload)
        upload_directory(directory, url)
    delete(join(url, "small"))
    assert not has_files(payload)


def test_exclusive_creation_has_one_winner(store: Store) -> None:
    url = join(store.url, "lease", "1.json")
    assert [create_bytes(url, b"first"), create_bytes(url, b"second")] == [True, False]


def test_names_and_deletion(store: Store) -> None:
    for name in ("b", "a"):
        write_bytes(join(store.url, "things", name), b"x")
    assert list_names(join(store.url, "things")) == ["a", "b"]
    delete(join(store.url, "things"))
    assert list_names(join(store.url, "things")) == []
    delete(join(store.url, "things"))


def test_a_directory_travels_unchanged(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(bytes(range(256)) * 100)
    (source / "b.txt").write_text("text")
    url = store.attempt_url("models", "ab12")
    files = upload_directory(source, url)
    assert describe_files(local_directory(url, files)) == files


def test_a_full_disk_takes_copies_that_nobody_asked_for_lately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))
    places = []
    for index in range(4):
        url = f"s3://{s3_server.bucket}/{secrets.token_hex(4)}"
        write_bytes(join(url, "model.safetensors"), bytes([index]) * 10)
        (source := tmp_path / f"source-{index}").mkdir()
        (source / "model.safetensors").write_bytes(bytes([index]) * 10)
        places.append((url, describe_files(source)))
    copies = [local_directory(*place) for place in places[:3]]
    for copy, hours in zip(copies, (3, 4, 5), strict=True):
        os.utime(copy, (0, time.time() - 3600 * hours))
    local_directory(*places[2])  # asked for again
    (other := tmp_path / "cache" / "thesis").mkdir()
    (other / "model.safetensors").touch()
    os.utime(other, (0, 0))
    copies[1].rename(partial := copies[1].with_name(f"{copies[1].name}.partial"))  # of a download that was killed
    free = itertools.chain([0, 0], itertools.repeat(10**9))  # bytes, before each copy is looked at
    monkeypatch.setattr(payload.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    copies.append(local_directory(*places[3]))
    assert [copy.is_dir() for copy in (copies[0], partial, *copies[2:])] == [False, False, True, True]
    assert other.is_dir(), "no copy of ours"
    assert local_directory(*places[0]) == copies[0]


def test_a_changed_file_is_noticed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(b"right")
    url = store.attempt_url("models", "ab12")
    files = upload_directory(source, url)
    write_bytes(join(url, "a.bin"), b"wrong!")
    with pytest.raises(OSError, match=r"a\.bin"):
        local_directory(url, files)
    assert not [path for path in tmp_path.glob("cache/*") if path.is_dir()]


def test_a_probe_leaves_nothing(store: Store) -> None:
    store.probe()
    assert not exists(store.url) or list_names(store.url) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(BadInputError, match=r"storage\.url"):
        Store.at(str(tmp_path / "file" / "results")).probe()


@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]
)
def test_wrong_credentials_and_servers_are_refused(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(BadInputError, match=r"storage\.url"):
            Store.at(f"s3://{s3_server.bucket}/results").probe()
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_not_there_is_refused_and_not_created(s3_server: S3Server) -> None:
    with pytest.raises(BadInputError, match=r"storage\.url.*no bucket 'no-such-bucket'"):
        Store.at("s3://no-such-bucket/results").probe()
    assert s3fs.S3FileSystem(skip_instance_cache=True).ls("") == [s3_server.bucket]


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="link to nothing"):
        Store.at(str(tmp_path / "link")).probe()


def test_a_relative_directory_in_a_submitted_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(BadInputError, match="absolute"):
        Store.at("./results")
    assert Store.at(str(tmp_path)).url == str(tmp_path)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(BadInputError, match="nosuch"):
        Store.at("nosuch://bucket/results")


@pytest.mark.parametrize("name", ["..", "../other", "a/../../b", "/etc/passwd"])
def test_names_do_not_lead_out_of_a_url(store: Store, name: str) -> None:
    with pytest.raises(BadInputError, match="no name of a place below"):
        join(store.url, name)
    with pytest.raises(BadInputError, match="no name of a place below"):
        store.experiment_url(name)


def test_files_of_a_record_do_not_lead_out_of_their_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))
    entry = FileEntry(path="../../escaped", num_bytes=1, sha256="0" * 64)
    with pytest.raises((BadInputError, OSError)):
        local_directory(store.attempt_url("models", "ab12"), (entry,))
    assert not list(tmp_path.rglob("escaped"))


def test_files_are_found_at_any_depth(store: Store) -> None:
    assert find_files(store.url) == []
    for name, size in (("a/b/c", 3), ("d", 1), (".hidden", 0)):
        write_bytes(join(store.url, name), b"x" * size)
    found = {file.path: file for file in find_files(store.url)}
    assert {path: file.num_bytes for path, file in found.items()} == {"a/b/c": 3, "d": 1, ".hidden": 0}
    age = datetime.datetime.now(datetime.UTC) - found["d"].modified
    assert abs(age.total_seconds()) < 60


@pytest.mark.parametrize("url", ["s3://me:hidden@bucket/x", "s3://bucket/x?secret_key=hidden"])
def test_credentials_in_a_url_are_refused(url: str) -> None:
    with pytest.raises(BadInputError, match="must not hold credentials") as refusal:
        Store.at(url)
    assert "=hidden" not in str(refusal.value)
    assert ":hidden" not in str(refusal.value)
