"""Training data of a search: what is refused at submission, and what is packed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.data.packing import SHARD_TOKENS, pack_tokens
from shortened_llm.data.sources import text_roles
from shortened_llm.errors import BadInputError
from shortened_llm.models.directory import load_config, load_tokenizer, model_directory
from shortened_llm.records import ModelRef
from shortened_llm.search.packing import PackingJobs, packing_jobs, source_shares, unequally_cut
from shortened_llm.search.preflight import check_config
from shortened_llm.storage.store import Store

PAIR = {"instruction": "Say hello.", "output": "Hello."}


def rows_file(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def with_pairs(tiny_values: dict, tmp_path: Path) -> dict:
    """A search that trains adapters on two instruction pairs."""
    instructions = {"path": rows_file(tmp_path / "pairs.jsonl", [PAIR] * 2)}
    tiny_values["retraining"] |= {
        "methods": ["lora"], "lora": {"train_on": "instructions"}, "instructions": instructions,
    }  # fmt: skip
    return tiny_values


def check(values: dict, store: Store) -> None:
    check_config(parse_config(values), store, searches=True)


@pytest.mark.parametrize(
    ("rows", "field", "words"),
    [
        ([{"body": "a"}], "text", ["retraining.data.0.field", "no column 'text'", "has body"]),
        ([], "text", ["retraining.data.0.path", "holds no documents"]),
        ([{"text": ""}], "text", ["retraining.data.0.path", "holds no documents"]),
        ([{"text": "short"}], "text", ["retraining.data.0.path", "5 tokens", "retraining.sequence_length 128"]),
        ([{"input_ids": [1] * 64}], "text", ["retraining.sequence_length", "128", "has 64"]),
    ],
)
def test_bad_training_texts_are_refused(
    tiny_values: dict, tmp_path: Path, local_store: Store, rows: list[dict], field: str, words: list[str]
) -> None:
    tiny_values["retraining"]["data"] = {"path": rows_file(tmp_path / "bad.jsonl", rows), "field": field}
    with pytest.raises(BadInputError) as caught:
        check(tiny_values, local_store)
    for word in words:
        assert word in str(caught.value)


def test_ids_without_an_embedding_are_refused(
    tiny_values: dict, tiny_model: ModelRef, tmp_path: Path, local_store: Store
) -> None:
    size = load_config(Path(tiny_model.url)).vocab_size
    for token, refused in ((size - 1, False), (size, True)):
        row = {"input_ids": [1] * 127 + [token]}
        tiny_values["retraining"]["data"] = {"path": rows_file(tmp_path / f"{token}.jsonl", [row])}
        if not refused:
            check(tiny_values, local_store)
            continue
        with pytest.raises(BadInputError, match=rf"retraining\.data\.0\.path.*token id {size};.*0 to {size - 1}"):
            check(tiny_values, local_store)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([PAIR, {"instruction": "a", "output": ""}], {}, ["retraining.instructions", "row 1", "output ''"]),
        ([{"instruction": "a"}], {}, ["retraining.instructions.response_field", "'output'", "has instruction"]),
        ([], {}, ["retraining.instructions.path", "holds no pairs"]),
        ([PAIR], {"template": "chat"}, ["retraining.instructions.template", "'chat'", "use 'alpaca'"]),
        ([PAIR], {"max_length": 64}, ["retraining.instructions.max_length", "is 64", "first 1 pairs"]),
        ([PAIR], {"max_length": 100_000}, ["retraining.instructions.max_length", "is 100000", "context"]),
    ],
)
def test_bad_instruction_data_is_refused(
    with_pairs: dict, tmp_path: Path, local_store: Store, rows: list[dict], options: dict, words: list[str]
) -> None:
    check(with_pairs, local_store)
    path = rows_file(tmp_path / "bad.jsonl", rows)
    with_pairs["retraining"]["instructions"] = {"path": path} | options
    with pytest.raises(BadInputError) as caught:
        check(with_pairs, local_store)
    for word in words:
        assert word in str(caught.value)


def test_a_source_without_a_weight_among_others_is_named(tiny_values: dict) -> None:
    path = tiny_values["retraining"]["data"]["path"]
    tiny_values["retraining"]["data"] = [{"path": path, "weight": 2}, {"path": path}]
    with pytest.raises(BadInputError, match=r"data\.1\.weight.*stories\.jsonl.*all of them a weight, or none"):
        parse_config(tiny_values)


def jobs(config: ExperimentConfig, model: ModelRef) -> PackingJobs:
    return packing_jobs(model, config.retraining, text_roles(config))


def test_a_source_is_packed_for_its_share_of_the_largest_budget(tiny_values: dict, tiny_model: ModelRef) -> None:
    path, per_shard = tiny_values["retraining"]["data"]["path"], SHARD_TOKENS // 128
    tiny_values["retraining"] |= {"tokens": {0.25: 1_000_000, 0.5: 100_000_000}}
    tiny_values["search"]["ratios"] = [0.25, 0.5]
    assert [job.at_most for job in jobs(parse_config(tiny_values), tiny_model).corpus] == [100_000_000 // 128]
    tiny_values["retraining"]["data"] = [{"path": path, "weight": 3}, {"path": path, "weight": 1}]
    config = parse_config(tiny_values)
    assert source_shares(config.retraining) == (0.75, 0.25)
    assert [job.at_most for job in jobs(config, tiny_model).corpus] == [75_000_000 // 128 + 1, 25_000_000 // 128 + 1]
    tiny_values["retraining"]["tokens"] = 8192
    assert [job.at_most for job in jobs(parse_config(tiny_values), tiny_model).corpus] == [per_shard, per_shard]


def test_sources_that_are_mixed_by_what_was_read_are_named(
    tiny_values: dict, tiny_model: ModelRef, local_store: Store
) -> None:
    path = tiny_values["retraining"]["data"]["path"]
    tiny_values["retraining"]["data"] = [{"path": path}, {"path": path.replace("stories", "news")}]
    config, tokenizer = parse_config(tiny_values), load_tokenizer(model_directory(tiny_model))
    whole = jobs(config, tiny_model).corpus
    small = [replace(job, at_most=at_most) for job, at_most in zip(whole, (30, 10), strict=True)]
    for asked, cut in ((whole, None), (small, "75% stories, 25% news; of stories, news not all was read")):
        datasets = [pack_tokens(job, tokenizer, local_store) for job in asked]
        found = unequally_cut(asked, datasets, config.retraining)
        assert cut in found if cut and found else found == cut
    assert unequally_cut(small[:1], datasets[:1], config.retraining) is None
    assert unequally_cut((), (), config.retraining) is None, "no method reads them"
    weighted = [{**one, "weight": 1} for one in tiny_values["retraining"]["data"]]
    tiny_values["retraining"]["data"] = weighted
    assert unequally_cut(small, datasets, parse_config(tiny_values).retraining) is None


def test_only_what_the_methods_read_is_packed(with_pairs: dict, tiny_model: ModelRef) -> None:
    found = jobs(parse_config(with_pairs), tiny_model)
    assert (len(found.corpus), len(found.instructions), len(found.validation)) == (0, 1, 1)
    assert found.instructions[0].sequence_length == 256
    (validation,) = found.validation
    assert (validation.sequence_length, validation.at_most) == (128, 16)
    assert validation.source.purpose == "selection"
    with_pairs["retraining"] |= {"methods": ["cpt"], "validation_sequences": 0}
    found = jobs(parse_config(with_pairs), tiny_model)
    assert (len(found.corpus), len(found.instructions), len(found.validation)) == (1, 0, 0)
    with_pairs["retraining"] |= {"methods": ["none"], "validation_sequences": 16}
    assert jobs(parse_config(with_pairs), tiny_model) == PackingJobs(corpus=(), instructions=(), validation=())
