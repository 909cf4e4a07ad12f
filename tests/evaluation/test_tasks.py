"""Tasks against lm-eval's own command line, and against a straight computation."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from shortened_llm.config import GenerationConfig, TaskConfig
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.evaluation.task_check import check_has_bits_per_byte, check_tasks, load_task
from shortened_llm.evaluation.tasks import measure_task
from shortened_llm.evaluation.units import TaskUnit
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef, TaskScore
from shortened_llm.storage.store import Store
from tests.evaluation.local_tasks import CONTEXTS, ENDINGS

FIELD = "evaluation.selection.tasks"

BATCH_SIZE, LIMIT, MAX_TOKENS = 4, 7, 6
GENERATION = GenerationConfig(max_tokens=MAX_TOKENS)

Measure = Callable[..., tuple[TaskScore, Path]]


@pytest.fixture(scope="module")
def measure(model: ModelRef, task_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Measure the tiny model, once in each way; returns the score and the directory of lm-eval's files."""
    loaded = load_model(model, "float32")

    @cache
    def measured(
        name: str, limit: int | None = LIMIT, template: str | None = None, **values: object
    ) -> tuple[TaskScore, Path]:
        task = TaskConfig(task=name, **values)  # type: ignore[arg-type]
        tokenizer = load_tokenizer(model_directory(model))
        tokenizer.chat_template = template
        output = tmp_path_factory.mktemp(name)
        score = measure_task(
            loaded, tokenizer, task, directory=str(task_directory), limit=limit, batch_size=BATCH_SIZE,
            output=output,
        )  # fmt: skip
        return score, output

    return measured


@pytest.fixture(scope="module")
def command_line(model: ModelRef, task_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the files that `lm_eval` wrote for the same model and tasks."""
    output = tmp_path_factory.mktemp("command_line")
    options = {
        "model": "hf",
        "model_args": f"pretrained={model_directory(model)},dtype=float32",
        "tasks": "group_local,contexts_local,words_local",
        "include_path": task_directory,
        "limit": LIMIT,
        "batch_size": BATCH_SIZE,
        "gen_kwargs": f"do_sample=False,temperature=0.0,max_gen_toks={MAX_TOKENS}",
        "output_path": output,
        "device": "cpu",
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lm_eval", *arguments, "--log_samples"]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=500)
    (results,) = output.rglob("results_*.json")
    return results.parent


def without(sample: dict, *keys: str) -> dict:
    return {key: value for key, value in sample.items() if key not in keys}


@pytest.mark.parametrize(
    ("name", "metric", "leaves", "settings"),
    [
        ("group_local", "acc_norm,none", ["shots_local", "endings_local"], {}),
        ("contexts_local", "acc,none", ["contexts_local"], {}),
        ("words_local", "exact_match,letters", ["words_local"], {"generation": GENERATION}),
    ],
)
def test_numbers_are_those_of_the_command_line(
    name: str, metric: str, leaves: list[str], settings: dict, measure: Measure, command_line: Path
) -> None:
    score, output = measure(name, **settings)
    (results_file,) = command_line.glob("results_*.json")
    theirs, ours = json.loads(results_file.read_text()), json.loads((output / "results.json").read_text())
    assert ours["results"][name] == theirs["results"][name]
    assert ours.keys() | {"groups"} == theirs.keys()
    assert score.value == theirs["results"][name][metric]
    assert score.standard_error == theirs["results"][name][metric.replace(",", "_stderr,")]
    assert score.metric == metric.split(",")[0]

    values = []
    for leaf in leaves:
        (samples_file,) = command_line.glob(f"samples_{leaf}_*.jsonl")
        expected = [json.loads(line) for line in samples_file.read_text().splitlines()]
        samples = [json.loads(line) for line in (output / f"samples_{leaf}.jsonl").read_text().splitlines()]
        # Log-likelihoods depend on what else was in the batch, in the last bits; what follows from them does not.
        assert [without(sample, "resps", "filtered_resps") for sample in samples] == [
            without(sample, "resps", "filtered_resps") for sample in expected
        ]
        of_filter = [sample for sample in expected if sample["filter"] == metric.split(",")[1]]
        values += [sample[metric.split(",")[0]] for sample in of_filter]
    assert list(score.item_values) == values
    assert score.num_items == len(values)
    assert sum(values) / len(values) == pytest.approx(score.value, abs=1e-12)
    assert 0 < score.value < 1  # else the comparison is worth little


def bits_per_byte(model: ModelRef, context: str, continuation: str) -> float:
    loaded, tokenizer = load_model(model, "float32"), load_tokenizer(model_directory(model))
    ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    scored = len(ids) - len(tokenizer(context, add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        logits = loaded(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    nats = -logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[-scored:].sum().item()
    return nats / math.log(2) / len(continuation.encode())


@pytest.mark.parametrize(
    ("name", "gold"),
    [
        ("endings_local", [(row["text"], row["choices"][row["label"]]) for row in ENDINGS]),
        ("spaces_local", [(row["text"], " " + row["choices"][row["label"]]) for row in ENDINGS]),
        ("contexts_local", [(row["choices"][row["label"]], " " + row["ending"]) for row in CONTEXTS]),
    ],
)
def test_bits_per_byte_are_those_of_a_straight_computation(
    name: str, gold: list[tuple[str, str]], measure: Measure, model: ModelRef
) -> None:
    score, _ = measure(name)
    assert score.item_bits_per_byte == pytest.approx([bits_per_byte(model, *pair) for pair in gold], rel=1e-5)
    assert score.bits_per_byte == pytest.approx(sum(score.item_bits_per_byte) / len(gold))


def test_answers_follow_the_metric(measure: Measure) -> None:
    labels = [row["label"] for row in ENDINGS]
    for name, metric in (("endings_local", "acc_norm"), ("spaces_local", "acc")):
        score, output = measure(name)
        assert score.metric == metric
        assert [answer == label for answer, label in zip(score.item_answers, labels, strict=True)] == [
            value == 1 for value in score.item_values
        ]
        samples = [json.loads(line) for line in (output / f"samples_{name}.jsonl").read_text().splitlines()]
        for sample, answer in zip(samples, score.item_answers, strict=True):
            nats = [float(value) for value, _ in sample["filtered_resps"]]
            lengths = [len(choice) if metric == "acc_norm" else 1 for choice in sample["doc"]["choices"]]
            rates = [value / length for value, length in zip(nats, lengths, strict=True)]
            assert answer == rates.index(max(rates))


def test_what_makes_numbers_incomparable_is_in_the_protocol(measure: Measure) -> None:
    plain, _ = measure("endings_local", limit=None)
    assert plain.protocol.endswith("task version 2.0, 0 shots, all 5 items")
    assert measure("endings_local", limit=3)[0].protocol.endswith("0 shots, first 3 items")
    assert "0 shots" in measure("shots_local", num_fewshot=0)[0].protocol
    group, _ = measure("group_local")
    assert "group version 3, 2 tasks, task version 1.0/2.0, 2/0 shots, first 12 items" in group.protocol
    template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}[assistant]"
    chat, output = measure("endings_local", chat_template=True, template=template)
    assert "chat template " in chat.protocol
    assert "[user] Once upon a[assistant]" in (output / "samples_endings_local.jsonl").read_text()
    words, output = measure("words_local", generation=GENERATION)
    assert words.protocol.endswith(f"filter letters, all 4 items, generation do_sample=False max_gen_toks={MAX_TOKENS} "
                                   "temperature=0.0")  # fmt: skip
    sampled, _ = measure("words_local", generation=GenerationConfig(temperature=0.5, top_p=0.9))
    assert "do_sample=True max_gen_toks=20 temperature=0.5 top_p=0.9" in sampled.protocol


def test_log_probabilities_are_not_rounded_as_the_model_is(
    model: ModelRef, task_directory: Path, tmp_path: Path
) -> None:
    """In bfloat16, the sum over a long answer would be a whole number of nats."""
    measure_task(
        load_model(model, "bfloat16"), load_tokenizer(model_directory(model)), TaskConfig(task="group_local"),
        directory=str(task_directory), limit=LIMIT, batch_size=BATCH_SIZE, output=tmp_path,
    )  # fmt: skip
    samples = [json.loads(line) for path in tmp_path.rglob("samples_*.jsonl") for line in path.read_text().splitlines()]
    found = [float(answer[0]) for sample in samples for answer in sample["filtered_resps"]]
    assert found
    assert all(value != float(torch.tensor(value).bfloat16()) for value in found)


def test_a_score_that_is_no_mean_over_items_has_no_item_values(measure: Measure) -> None:
    score, output = measure("unweighted_local")
    results = json.loads((output / "results.json").read_text())["results"]
    assert score.value == pytest.approx((results["shots_local"]["acc,none"] + results["endings_local"]["acc,none"]) / 2)
    assert score.item_values == ()
    assert len(score.item_answers) == len(score.item_bits_per_byte) == score.num_items == 12
    assert "mean of the tasks, whatever their sizes" in score.protocol


def test_a_task_is_stored(model: ModelRef, local_store: Store, task_directory: Path) -> None:
    unit = TaskUnit(config=TaskConfig(task="endings_local"), directory=str(task_directory), limit=4)
    scores = evaluate(model, [unit], local_store, LoadedModels("float32", "cpu"), batch_size=2)
    assert scores.tasks[0].num_items == 4
    before = unit.identity
    (task_directory / "another.jsonl").write_text("{}\n")
    assert unit.identity != before


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"task": "piqaa"},
            "unknown task or group 'piqaa'; nearest: piqa.*task_directory: contexts_local",
        ),
        ({"task": "mmlu_human"}, "nearest: .*mmlu_humanities"),
        ({"task": "grup_local"}, "nearest: .*group_local"),
        ({"task": "scoreless_local"}, "no score of its own; list its tasks: endings_local, shots_local"),
        ({"task": "some_tag"}, "is a tag.*tagged_local"),
        ({"task": "endings_local", "generation": {}}, "no generative task .*multiple_choice"),
        ({"task": "group_local", "generation": {}}, "no generative task"),
        ({"task": "fixed_local", "num_fewshot": 5}, "num_fewshot 5.*fixes it at 0"),
        ({"task": "words_local", "chat_template": True}, r"chat_template: true.*no chat template"),
        ({"task": "humaneval"}, "executes"),
    ],
)
def test_tasks_that_cannot_run_are_refused_by_name(
    task: dict, message: str, task_directory: Path, model: ModelRef
) -> None:
    with pytest.raises(BadInputError, match=f"^{FIELD}: .*{message}"):
        check_tasks((TaskConfig(**task),), str(task_directory), FIELD, tokenizer=load_tokenizer(model_directory(model)))


def test_bits_per_byte_are_those_of_choices(task_directory: Path) -> None:
    for name in ("endings_local", "group_local"):
        check_has_bits_per_byte(name, str(task_directory), FIELD)
    with pytest.raises(BadInputError, match=f"^{FIELD}: bits per byte of 'words_local'.*generate_until"):
        check_has_bits_per_byte("words_local", str(task_directory), FIELD)


def test_tasks_that_can_run_pass(task_directory: Path) -> None:
    names = ["endings_local", "group_local", "words_local", "piqa", "mmlu", "gsm8k"]
    check_tasks(tuple(TaskConfig(task=name) for name in names), str(task_directory), FIELD)
    check_tasks((TaskConfig(task="gsm8k", num_fewshot=3, generation={}),), str(task_directory), FIELD)  # type: ignore[arg-type]
    load_task("group_local", str(task_directory))
    with pytest.raises(BadInputError, match=r"task_directory.*no directory"):
        check_tasks((TaskConfig(task="piqa"),), "/no/such/directory", FIELD)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("piqa", "data of 'piqa' cannot be read, data set baber/piqa.*task_directory.*data_files"),
        ("mmlu", "data of 'mmlu' cannot be read, data set cais/mmlu"),
        ("no_such_data_local", "none.jsonl"),
        ("no_such_split_local", "cannot be set up: KeyError"),
    ],
)
def test_data_that_cannot_be_read_is_named(name: str, message: str, task_directory: Path) -> None:
    with pytest.raises(BadInputError, match=message):
        load_task(name, str(task_directory))
