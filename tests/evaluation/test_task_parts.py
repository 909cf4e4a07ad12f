"""Tasks that several processes share: not a digit differs from the same task in one process."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
import yaml

import shortened_llm.evaluation.measure as measure_module
from shortened_llm.config import GenerationConfig, TaskConfig
from shortened_llm.evaluation.measure import (
    LoadedModels,
    finish_score,
    join_task_parts,
    measure_part,
    read_score,
)
from shortened_llm.evaluation.task_requests import TaskPart, answer_requests
from shortened_llm.evaluation.tasks import measure_task_part
from shortened_llm.evaluation.units import TaskUnit
from shortened_llm.models.load import load_model, load_tokenizer, model_directory
from shortened_llm.records import ModelRef, TaskScore
from shortened_llm.storage.store import Store
from tests.evaluation.local_tasks import CONTEXTS, ENDINGS, WORDS, accuracy, write_tasks

BATCH_SIZE = 2
MEAN = {"aggregation": "mean", "higher_is_better": True}
UTILS = """
import secrets


def process_results(doc, results):
    return {"longest": (len(results[0]), len(doc["word"]))}


def longest(items):
    return max(answer for answer, word in items) + 0.001 * items[-1][1]


def fickle(doc):
    return doc["text"] + " " + secrets.token_hex(2)
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("divided")
    write_tasks(directory)
    (directory / "utils.py").write_text(UTILS)
    endings, words, two = (str(directory / f"{name}.jsonl") for name in ("endings", "words", "two"))
    rows = [row | {"choices": row["choices"][:2], "label": row["label"] % 2} for row in ENDINGS]
    Path(two).write_text("".join(json.dumps(row) + "\n" for row in rows))
    generation = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "word",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
    }
    tasks = {
        "rolling": {
            **accuracy("", endings, by=[]),
            "output_type": "loglikelihood_rolling",
            "doc_to_choice": None,
            "doc_to_target": "{{text}} {{choices[0]}}",
            "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
        # Its standard error is a bootstrap.
        "last_words": {
            **accuracy("{{text}}", words, by=[]),
            "output_type": "loglikelihood",
            "doc_to_choice": None,
            "doc_to_target": " {{word}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                            {"metric": "acc", **MEAN}],
        },
        "whole_corpus": {
            **accuracy("{{text}}", words, by=[]),
            **generation,
            "metric_list": [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}],
        },
        "several": accuracy("{{text}}", two, by=[]) | {
            "metric_list": [{"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
                            {"metric": "acc_mutual_info", **MEAN}, {"metric": "acc_bytes", **MEAN}],
        },
        "classes": accuracy("{{text}}", two, by=[]) | {"metric_list": [{"metric": "f1"}, {"metric": "mcc"}]},
        "voted": {
            **accuracy("{{text}}", words, by=["exact_match"]),
            **generation,
            "repeats": 3,
            "filter_list": [{"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}],
        },
    }  # fmt: skip
    for name, values in tasks.items():
        (directory / f"{name}_local.yaml").write_text(yaml.safe_dump({"task": f"{name}_local", **values}))
    own = accuracy("{{text}}", words, by=[]) | generation
    del own["metric_list"]
    (directory / "own_local.yaml").write_text(
        yaml.safe_dump({"task": "own_local", **own})
        + "process_results: !function utils.process_results\n"
        + "metric_list:\n  - {metric: longest, aggregation: !function utils.longest, higher_is_better: true}\n"
    )
    fickle = accuracy("", endings, by=["acc"])
    del fickle["doc_to_text"]
    (directory / "fickle_local.yaml").write_text(
        yaml.safe_dump({"task": "fickle_local", **fickle}) + "doc_to_text: !function utils.fickle\n"
    )
    return directory


def measure(unit: TaskUnit, model: ModelRef, store: Store, loaded: LoadedModels, parts: int) -> TaskScore:
    notes: list[str] = []
    measured = [
        # As Ray hands it on.
        pickle.loads(pickle.dumps(measure_part(
            model, unit, loaded, store, batch_size=BATCH_SIZE, part=part, parts=parts, on_note=notes.append
        )))
        for part in range(parts)
    ]  # fmt: skip
    if parts > 1:
        measured = [join_task_parts(model, unit, measured, loaded, store, batch_size=BATCH_SIZE, on_note=notes.append)]
    score = finish_score(model, unit, measured, store, loaded.dtype)
    assert isinstance(score, TaskScore)
    assert not notes
    assert read_score(model, unit, store, loaded.dtype) == score
    return score


@pytest.fixture(scope="module")
def loaded() -> LoadedModels:
    return LoadedModels("float32", "cpu")


def files_of(score: TaskScore) -> dict[str, object]:
    """What lm-eval wrote, without the moments and durations."""
    assert score.results_url is not None
    results = Path(score.results_url.removeprefix("file://"))
    found: dict[str, object] = {path.name: path.read_text() for path in results.parent.glob("samples_*.jsonl")}
    assert found
    moments = ("date", "start_time", "end_time", "total_evaluation_time_seconds")
    return found | {key: value for key, value in json.loads(results.read_text()).items() if key not in moments}


@pytest.mark.parametrize(
    ("task", "limit"),
    [
        ({"task": "endings_local"}, None),
        ({"task": "group_local"}, None),
        ({"task": "group_local", "num_fewshot": 3}, 4),
        ({"task": "unweighted_local"}, None),
        ({"task": "contexts_local"}, None),
        ({"task": "words_local", "generation": GenerationConfig(max_tokens=6)}, None),
        ({"task": "words_local"}, None),
        ({"task": "voted_local"}, None),
        ({"task": "rolling_local"}, None),
        ({"task": "last_words_local"}, 3),
        ({"task": "whole_corpus_local"}, None),
        ({"task": "several_local"}, None),
        ({"task": "classes_local"}, None),
        ({"task": "own_local"}, None),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_parts_do_not_change_a_digit(
    task: dict,
    limit: int | None,
    directory: Path,
    model: ModelRef,
    tmp_path: Path,
    loaded: LoadedModels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of 100,000 samples, those of f1 take minutes.
    monkeypatch.setattr(lm_eval, "simple_evaluate", partial(lm_eval.simple_evaluate, bootstrap_iters=200))
    unit = TaskUnit(config=TaskConfig(**task), directory=str(directory), limit=limit)
    whole = measure(unit, model, Store.at(str(tmp_path / "1")), loaded, parts=1)
    for parts in (2, 3):
        divided = measure(unit, model, Store.at(str(tmp_path / str(parts))), loaded, parts=parts)
        assert replace(divided, results_url=None) == replace(whole, results_url=None)
        assert files_of(divided) == files_of(whole)


def parts_of(task: str, directory: Path, model: ModelRef, parts: int) -> list[TaskPart]:
    loaded = load_model(model, "float32")
    tokenizer = load_tokenizer(model_directory(model))
    return [
        measure_task_part(
            loaded, tokenizer, TaskConfig(task=task), directory=str(directory), limit=None, batch_size=BATCH_SIZE,
            cut_size=BATCH_SIZE, part=part, parts=parts,
        )
        for part in range(parts)
    ]  # fmt: skip


def test_each_request_is_answered_once_and_documents_stay_together(directory: Path, model: ModelRef) -> None:
    parts = [part.answers["loglikelihood"] for part in parts_of("shots_local", directory, model, 3)]
    choices = [len(row["choices"]) for row in ENDINGS[:3]] * 4
    assert all(parts)  # each has some of them
    assert sorted(number for part in parts for number in part) == list(range(sum(choices)))
    for document, count in enumerate(choices):
        first = sum(choices[:document])
        assert sum(not part.keys().isdisjoint(range(first, first + count)) for part in parts) == 1


def test_what_is_sampled_is_not_divided(directory: Path, model: ModelRef) -> None:
    first, second = parts_of("words_local", directory, model, 2)
    assert len(first.answers["generate_until"]) == len(WORDS)
    assert not second.answers["generate_until"]
    greedy = parts_of("whole_corpus_local", directory, model, 2)
    assert [len(part.answers["generate_until"]) for part in greedy] == [2, 2]


def test_a_task_that_asks_other_things_each_time_is_measured_whole(
    directory: Path, model: ModelRef, local_store: Store, loaded: LoadedModels
) -> None:
    unit = TaskUnit(config=TaskConfig(task="fickle_local"), directory=str(directory), limit=None)
    notes: list[str] = []
    parts = [
        measure_part(
            model, unit, loaded, local_store, batch_size=BATCH_SIZE, part=part, parts=2, on_note=notes.append
        )
        for part in range(2)
    ]  # fmt: skip
    score = join_task_parts(model, unit, parts, loaded, local_store, batch_size=BATCH_SIZE, on_note=notes.append)  # type: ignore[arg-type]
    assert isinstance(score, TaskScore)
    assert score.num_items == len(ENDINGS)
    assert len(score.item_bits_per_byte) == len(ENDINGS)
    assert "each time" in notes[0]


def test_a_part_without_room_takes_smaller_batches_of_the_same_requests(
    directory: Path, model: ModelRef, local_store: Store, loaded: LoadedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*arguments: object, batch_size: int, part: int, **options: object) -> object:
        if part == 1 and batch_size > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return measure_task_part(*arguments, batch_size=batch_size, part=part, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(measure_module, "measure_task_part", short_of_memory)
    unit = TaskUnit(config=TaskConfig(task="contexts_local"), directory=str(directory), limit=None)
    said: list[str] = []
    parts = [
        measure_part(model, unit, loaded, local_store, batch_size=4, part=part, parts=2, on_note=said.append)
        for part in range(2)
    ]
    score = join_task_parts(model, unit, parts, loaded, local_store, batch_size=4, on_note=said.append)  # type: ignore[arg-type]
    assert isinstance(score, TaskScore)
    assert score.notes == ("batch of 4 did not fit in memory: halved to 2",)
    assert score.num_items == len(CONTEXTS)
    finish_score(model, unit, [score], local_store, "float32")
    stored = read_score(model, unit, local_store, "float32")
    assert stored == score


def test_parts_have_as_much_to_read_as_each_other() -> None:
    lengths = [900, 20, 870, 30, 860, 500, 490, 40, 10, 600]
    requests = [
        SimpleNamespace(task_name="t", doc_id=number, request_type="loglikelihood", args=("x" * length, ""))
        for number, length in enumerate(lengths)
    ]
    asked: list[int] = []
    for part in range(2):
        found = answer_requests("loglikelihood", requests, lambda some: some, batch_size=0, part=part, parts=2)
        asked.append(sum(lengths[number] for number in found))
    assert sum(asked) == sum(lengths)
    assert max(asked) < 1.1 * min(asked)  # 1.16 where they are dealt out in turns
