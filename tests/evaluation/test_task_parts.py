"""Tasks that several processes share: not a digit differs from the same task in one process."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.models.huggingface import HFLM

from shortened_llm.config import GenerationConfig, TaskConfig
from shortened_llm.evaluation.chunks import Chunks
from shortened_llm.evaluation.measure import (
    LoadedModels,
    finish_score,
    join_task_parts,
    measure_part,
    read_score,
)
from shortened_llm.evaluation.task_requests import CHUNK_BATCHES, TaskPart
from shortened_llm.evaluation.units import TaskUnit
from shortened_llm.records import ModelRef, TaskScore
from shortened_llm.storage.store import Store
from tests.evaluation.dealing import dealt
from tests.evaluation.local_tasks import ENDINGS, accuracy, write_tasks

BATCH_SIZE = 2
SAMPLED = TaskConfig(task="words_local")
"""One chunk: nobody can help."""
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
            model, unit, loaded, store, batch_size=BATCH_SIZE, take=dealt(part, parts), on_note=notes.append
        )))
        for part in range(parts)
    ]  # fmt: skip
    whole = [part for part in measured if not isinstance(part, TaskPart)]
    assert len(whole) == (parts == 1 or unit.config == SAMPLED)
    if not whole:
        whole = [join_task_parts(model, unit, measured, store, loaded.dtype)]
    score = finish_score(model, unit, whole, store, loaded.dtype)
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
    monkeypatch.setitem(CHUNK_BATCHES, "loglikelihood", 1)
    monkeypatch.setattr(lm_eval, "simple_evaluate", partial(lm_eval.simple_evaluate, bootstrap_iters=200))
    unit = TaskUnit(config=TaskConfig(**task), directory=str(directory), limit=limit)
    whole = measure(unit, model, Store.at(str(tmp_path / "1")), loaded, parts=1)
    for parts in (2, 3):
        divided = measure(unit, model, Store.at(str(tmp_path / str(parts))), loaded, parts=parts)
        assert replace(divided, results_url=None) == replace(whole, results_url=None)
        assert files_of(divided) == files_of(whole)


def parts_of(unit: TaskUnit, model: ModelRef, store: Store, loaded: LoadedModels, parts: int) -> list[TaskPart]:
    measured = [
        measure_part(
            model, unit, loaded, store, batch_size=BATCH_SIZE, take=dealt(part, parts), on_note=pytest.fail
        )
        for part in range(parts)
    ]  # fmt: skip
    return [part for part in measured if isinstance(part, TaskPart)]


@pytest.fixture
def parts(
    directory: Path, model: ModelRef, local_store: Store, loaded: LoadedModels
) -> Callable[[str, int], list[TaskPart]]:
    """What processes that share a task of `directory` found."""

    def parts(task: str, number: int) -> list[TaskPart]:
        unit = TaskUnit(config=TaskConfig(task=task), directory=str(directory), limit=None)
        return parts_of(unit, model, local_store, loaded, number)

    return parts


def test_each_request_is_answered_once_and_documents_stay_together(
    parts: Callable[[str, int], list[TaskPart]],
) -> None:
    found = [part.answers["loglikelihood"] for part in parts("shots_local", 3)]
    choices = [len(row["choices"]) for row in ENDINGS[:3]] * 4
    assert all(found)  # each has some of them
    assert sorted(number for part in found for number in part) == list(range(sum(choices)))
    for document, count in enumerate(choices):
        first = sum(choices[:document])
        assert sum(not part.keys().isdisjoint(range(first, first + count)) for part in found) == 1


def test_what_is_sampled_is_one_chunk(parts: Callable[[str, int], list[TaskPart]]) -> None:
    (nothing,) = parts("words_local", 2)  # the other process has the score
    assert nothing.answers == {"generate_until": {}}
    greedy = parts("whole_corpus_local", 2)
    assert [len(part.answers["generate_until"]) for part in greedy] == [2, 2]


def test_nobody_can_help_with_a_task_that_asks_other_things_each_time(
    directory: Path, model: ModelRef, local_store: Store, loaded: LoadedModels
) -> None:
    unit = TaskUnit(config=TaskConfig(task="fickle_local"), directory=str(directory), limit=None)
    chunks = Chunks()
    score, help = (
        measure_part(
            model, unit, loaded, local_store, batch_size=BATCH_SIZE, take=partial(chunks.take, chunks.enter()),
            on_note=pytest.fail,
        )
        for _ in range(2)
    )  # fmt: skip
    assert isinstance(score, TaskScore)
    assert score.num_items == len(ENDINGS)
    assert isinstance(help, TaskPart)
    assert help.answers == {"loglikelihood": {}}


def test_answers_to_other_requests_are_not_joined(
    parts: Callable[[str, int], list[TaskPart]],
    directory: Path,
    model: ModelRef,
    local_store: Store,
    loaded: LoadedModels,
) -> None:
    first, second = parts("endings_local", 2)
    unit = TaskUnit(config=TaskConfig(task="endings_local"), directory=str(directory), limit=3)
    assert join_task_parts(model, unit, [first, second], local_store, loaded.dtype) is None
    (other, _) = parts("shots_local", 2)
    assert join_task_parts(model, unit, [first, other], local_store, loaded.dtype) is None


def test_a_part_without_room_takes_smaller_batches_of_the_same_chunks(
    directory: Path, model: ModelRef, local_store: Store, loaded: LoadedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, sizes = HFLM.loglikelihood, []

    def short_of_memory(model: HFLM, *arguments: object, **options: object) -> object:
        sizes.append(model.batch_size)
        if sizes == [2, 2]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return ask(model, *arguments, **options)  # type: ignore[arg-type]

    unit = TaskUnit(config=TaskConfig(task="shots_local"), directory=str(directory), limit=None)
    (first, _) = parts_of(unit, model, local_store, loaded, 2)
    said: list[str] = []
    monkeypatch.setattr(HFLM, "loglikelihood", short_of_memory)
    second = measure_part(
        model, unit, loaded, local_store, batch_size=BATCH_SIZE, take=dealt(1, 2), on_note=said.append
    )
    assert isinstance(second, TaskPart)
    joined = join_task_parts(model, unit, [first, second], local_store, "float32")
    assert sizes == [2, 2, 1, 1]
    assert "trying 1" in said[0]
    score = finish_score(model, unit, [joined], local_store, "float32")
    assert isinstance(score, TaskScore)
    assert score.notes == ("batch of 2 did not fit in memory: halved to 1",)
    assert score.num_items == len(ENDINGS[:3]) * 4
    assert read_score(model, unit, local_store, "float32") == score
