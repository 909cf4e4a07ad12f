"""Documents: what is read, how a source is split, and what is refused."""

import gzip
import json
from itertools import chain
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from shortened_llm.config import ExperimentConfig, TextSource, parse_config
from shortened_llm.config.evaluation import NAMED_TEXTS
from shortened_llm.data.rows import find_files
from shortened_llm.data.sources import Documents, text_roles
from shortened_llm.errors import BadInputError
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, write_bytes


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def documents(path: str, purpose: str = "train", *, shared: bool = False, field: str = "text") -> Documents:
    source = TextSource(path=path, field=field)
    others = tuple({"train", "selection", "report"} - {purpose}) if shared else ()
    return Documents(
        source=source,
        purpose=purpose,  # type: ignore[arg-type]
        shared_with=others,  # type: ignore[arg-type]
        files=find_files(path, "retraining.data.0"),
        commit=None,
        field_path="retraining.data.0",
    )


def test_a_shared_source_is_split_by_document_and_nothing_is_lost(tmp_path: Path) -> None:
    texts = [f"document number {index}" for index in range(2000)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    parts = {p: list(documents(path, p, shared=True).usable()) for p in ("train", "selection", "report")}
    assert sorted(chain.from_iterable(parts.values())) == sorted(texts)
    assert 60 < len(parts["selection"]) < 140
    assert 60 < len(parts["report"]) < 140


def test_what_nothing_trains_on_is_split_in_halves(tmp_path: Path, tiny_values: dict) -> None:
    texts = [f"document number {index}" for index in range(2000)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    text = {"path": path, "bos": "none"}
    tiny_values["evaluation"] = {"selection": {"perplexity": text}, "report": {"perplexity": text, "agreement": text}}
    roles = text_roles(parse_config(tiny_values))
    selection, report = list(roles.selection[0].usable()), list(roles.report[0].usable())
    assert sorted([*selection, *report]) == sorted(texts)
    assert 900 < len(selection) < 1100
    assert list(roles.agreement[0].usable()) == report
    tiny_values["calibration"]["path"] = path
    shared = text_roles(parse_config(tiny_values))
    assert set(shared.report[0].usable()) < set(report)
    assert shared.report[0].identity != roles.report[0].identity


def test_equal_documents_fall_into_one_part(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"document {index % 50}"} for index in range(200)])
    parts = [set(documents(path, p, shared=True).usable()) for p in ("train", "selection", "report")]
    assert sum(len(part) for part in parts) == 50


def test_an_unshared_source_is_whole(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": ""}, {"text": "three"}])
    assert list(documents(path, "report").usable()) == ["one", "", "three"]


def test_roles_share_what_several_purposes_name(tiny_config: ExperimentConfig) -> None:
    roles = text_roles(tiny_config)
    assert roles.calibration[0].shared_with == roles.train[0].shared_with == ("selection",)
    assert roles.selection[0].shared_with == ("train",)
    assert roles.report[0].shared_with == ()


@pytest.mark.parametrize("alias", ["{directory}/./{name}", "{directory}/stor*.jsonl", "file://{directory}/{name}"])
def test_a_source_is_known_under_any_spelling(alias: str, tiny_values: dict) -> None:
    path = Path(tiny_values["retraining"]["data"]["path"])
    spelled = alias.format(directory=path.parent, name=path.name)
    tiny_values["evaluation"]["report"]["perplexity"] = [{"path": spelled, "bos": "none"}]
    roles = text_roles(parse_config(tiny_values))
    assert roles.report[0].shared_with == ("selection", "train")


def test_text_and_parquet_and_globs(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.txt").write_text("first line\nsame document\n\nsecond document")
    assert list(documents(str(tmp_path / "a.txt")).usable()) == ["first line\nsame document", "second document"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert list(documents(str(tmp_path / "a.parquet")).usable()) == ["one", "two"]
    write_jsonl(tmp_path / "b1.jsonl", [{"text": "b1"}])
    write_jsonl(tmp_path / "b2.jsonl", [{"text": "b2"}])
    assert list(documents(str(tmp_path / "b*.jsonl")).usable()) == ["b1", "b2"]


def test_token_rows_win_over_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "input_ids": [1, 2, 3]}])
    assert list(documents(path).usable()) == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ('{"text": "a"}\n', "body", ["body", "text"]),
        ('{"text": 3}\n', "text", ["row 0", "3"]),
        ('{"text": null}\n', "text", ["row 0", "None"]),
        ("not json\n", "text", ["row 0", "is not JSON"]),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str, field: str, words: list[str]) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(BadInputError) as caught:
        list(documents(str(tmp_path / "a.jsonl"), field=field).usable())
    for word in ["retraining.data.0", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_holds_no_documents(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert list(documents(str(tmp_path / name)).usable()) == []


def test_any_range_of_rows_can_be_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"a{index}"} for index in range(7)])
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"b{index}"} for index in range(3)])
    source = documents(str(tmp_path / "*.jsonl"))
    assert source.num_shards == 2
    assert list(source.read(0, first=2, count=3)) == ["a2", "a3", "a4"]
    assert list(source.read(1, first=2, count=3)) == ["b2"]
    assert list(source.read(1, first=5, count=3)) == []


def test_documents_of_other_purposes_keep_their_place(tmp_path: Path) -> None:
    """Ranges of rows are the same for every purpose of a shared source."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"document {index}"} for index in range(300)])
    parts = [list(documents(path, p, shared=True).read(0)) for p in ("train", "selection", "report")]
    assert all(sum(value is not None for value in row) == 1 for row in zip(*parts, strict=True))


def test_a_data_set_is_read_in_its_own_shards(tmp_path: Path) -> None:
    """A directory is to `datasets` what a hub data set is: several files behind one name."""
    for name in ("train-0", "train-1"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {index}"} for index in range(3)])
    source = Documents(
        source=TextSource(path=str(tmp_path)), purpose="train", shared_with=(), files=(), commit=None, field_path="data"
    )
    assert source.num_shards == 2
    assert list(source.read(1, first=1, count=5)) == ["train-1 1", "train-1 2"]
    assert len(list(source.usable())) == 6


@pytest.mark.parametrize("path", ["missing.jsonl", "no-*.parquet", "/no/such/dir"])
def test_missing_files_are_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(BadInputError, match=r"retraining\.data\.0\.path"):
        list(documents(str(tmp_path / path)).usable())


def test_files_are_told_from_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "a.csv").write_text("x")
    assert find_files("a.jsonl", "data") == (str(tmp_path / "a.jsonl"),)
    assert find_files("org/data-set", "data") == ()
    assert find_files("wikitext", "data") == ()
    for path, word in (("corpus", "is a directory"), ("a.csv", "'.csv'"), ("./missing", "does not exist")):
        with pytest.raises(BadInputError, match=word):
            find_files(path, "data")


def test_files_on_object_storage_are_read(store: Store) -> None:
    for name, count in (("a", 4), ("b", 2)):
        content = "".join(json.dumps({"text": f"{name}{index}"}) + "\n" for index in range(count))
        write_bytes(join(store.url, f"{name}.jsonl"), content.encode())
    write_bytes(join(store.url, "c.jsonl"), b"")
    source = documents(join(store.url, "*.jsonl"))
    assert source.num_shards == 3
    assert list(source.usable()) == ["a0", "a1", "a2", "a3", "b0", "b1"]
    assert list(source.read(0, first=2, count=1)) == ["a2"]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write('{"text": "packed"}\n')
    assert list(documents(str(tmp_path / "a.jsonl.gz")).usable()) == ["packed"]


def test_a_zstandard_file_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    """As `zstd` with threads, and `cat a.zst b.zst`, make them."""
    packed = [zstd.compress(json.dumps({"text": text}).encode() + b"\n") for text in ("first", "second")]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(packed))
    assert list(documents(str(tmp_path / "a.jsonl.zst")).usable()) == ["first", "second"]


@pytest.mark.parametrize("name", ["a[1].jsonl", "a?.jsonl", "a*.jsonl", "a b#c%20.jsonl"])
def test_a_path_that_exists_is_meant_literally(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "meant"}\n')
    (tmp_path / "a1.jsonl").write_text('{"text": "matched"}\n')
    assert list(documents(str(tmp_path / name)).usable()) == ["meant"]


def test_a_few_bad_rows_are_left_out_and_told(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    rows = [json.dumps({"text": f"row {index}"}) for index in range(300)]
    rows[7], rows[299] = '{"text": null}', rows[299][:9]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = list(documents(str(tmp_path / "a.jsonl")).usable())
    assert len(found) == 298
    assert "2 of 300 rows cannot be used and are left out: row 7" in logged.text


def test_bad_rows_are_counted_over_the_whole_source(tmp_path: Path) -> None:
    """Many in a row are no reason to refuse it; nothing else to begin with is."""
    rows = [json.dumps({"text": f"row {index}"}) for index in range(20_000)]
    rows[5_000:5_120] = ['{"text": null}'] * 120
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert len(list(documents(str(tmp_path / "a.jsonl")).usable())) == 19_880
    (tmp_path / "b.jsonl").write_text("\n".join(['{"text": null}'] * 100 + rows))
    with pytest.raises(BadInputError, match=r"100 of 100 rows of .* cannot be used: row 0"):
        list(documents(str(tmp_path / "b.jsonl")).usable())


def test_columns_that_nobody_asked_for_may_change_their_type(tmp_path: Path) -> None:
    """After any guess of a schema from the first rows."""
    with (tmp_path / "a.jsonl").open("w") as stream:
        for index in range(20_000):
            meta = {"id": index} if index < 19_990 else "none"
            stream.write(json.dumps({"text": f"row {index}", "meta": meta}) + "\n")
    assert len(list(documents(str(tmp_path / "a.jsonl")).usable())) == 20_000


def test_identity_is_content_not_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": "same"}])
    write_jsonl(tmp_path / "c.jsonl", [{"text": "other"}])
    a, b, c = (documents(str(tmp_path / f"{name}.jsonl")).identity for name in "abc")
    assert a == b != c


def test_one_source_may_stand_for_a_list(tiny_values: dict) -> None:
    assert len(parse_config(tiny_values).retraining.data) == 1


def test_a_named_text_is_found_in_the_hubs_own_copy_of_it(tmp_path: Path) -> None:
    """The copy has a directory for the configuration, and no card that names it."""
    named = NAMED_TEXTS["ptb"]
    (tmp_path / "penn_treebank/validation").mkdir(parents=True)
    pq.write_table(pa.table({"sentence": ["no it was n't"]}), tmp_path / "penn_treebank/validation/0000.parquet")
    found = datasets.load_dataset(str(tmp_path), named.get("name"), split=named["split"], streaming=True)
    assert list(found) == [{named["field"]: "no it was n't"}]
