"""The comparison with published figures, on figures of the tiny model that were measured on their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import jobs.score
from shortened_llm.config import ExperimentConfig
from shortened_llm.data.sources import text_roles
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.models.stage import stage_model
from shortened_llm.scoring.job import scoring_jobs
from shortened_llm.scoring.score import score_all
from shortened_llm.search.units import selection_units
from shortened_llm.storage.store import Store
from tests.benchmarks.published import DRIFT, PUBLISHED, Published, compare_order, configuration, main


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def stories(tiny_assets: Path) -> str:
    return str(tiny_assets / "texts/stories.jsonl")


@pytest.fixture(scope="module")
def config(directory: Path, tiny_assets: Path, stories: str) -> ExperimentConfig:
    text = {"path": str(tiny_assets / "texts/news.jsonl"), "bos": "none", "max_tokens": 1024}
    row = Published(path=str(tiny_assets / "model"), orders={"ppl": (), "taylor": ()}, perplexities=((text, 0.0),))
    return configuration(row, {"path": stories}, str(directory / "measured"))


@pytest.fixture(scope="module")
def measured(directory: Path, config: ExperimentConfig) -> Published:
    """A row of the table: blocks by `jobs.score`, and the perplexity."""
    (directory / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    jobs.score.main([str(directory / "config.yaml"), "--output", str(directory)])
    scores = {name: json.loads((directory / f"{name}.json").read_text()) for name in ("ppl", "taylor")}
    orders = {name: tuple(b for b in one["order"] if b not in one["protected"]) for name, one in scores.items()}
    store = Store.at(config.storage.url)
    units = selection_units(config, text_roles(config))
    loaded = LoadedModels(config.model.dtype, "cpu")
    (found,) = evaluate(stage_model(config.model, store), units, store, loaded, batch_size=4).perplexity
    text = config.evaluation.selection.perplexity[0].model_dump(exclude_unset=True)
    return Published(path=config.model.path, orders=orders, perplexities=((text, round(found.perplexity, 2)),))


@pytest.fixture
def verdicts(directory: Path, stories: str) -> Callable[[Published], tuple[list[str], int]]:
    """Compare with a row of the table; the verdicts and the exit code."""

    def run(row: Published) -> tuple[list[str], int]:
        figures, storage = directory / "figures.json", directory / "compared"
        try:
            main(["--calibration", stories, "--storage", str(storage), "--json", str(figures)], {"tiny": row})
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        return [one["verdict"] for one in json.loads(figures.read_text())["tiny"]], code

    return run


def test_what_was_measured_does_not_drift(measured: Published, verdicts) -> None:
    assert verdicts(measured) == (["equal", "equal", "equal", "equal", "within"], 0)


def test_other_blocks_and_another_perplexity_drift(measured: Published, verdicts) -> None:
    ((text, perplexity),) = measured.perplexities
    orders = {name: order[::-1] for name, order in measured.orders.items()}
    wrong = replace(measured, orders=orders, perplexities=((text, perplexity * 1.02),))
    assert verdicts(wrong) == ([DRIFT] * 5, 1)


@pytest.mark.usefixtures("measured")
def test_blocks_that_are_not_told_apart_may_change_places(config: ExperimentConfig) -> None:
    """Blocks 5 and 6, where none is protected, differ by less than two standard errors."""
    store = Store.at(config.storage.url)
    (job,) = scoring_jobs(config, stage_model(config.model, store), text_roles(config).calibration, {})
    ppl, _ = score_all([job], store)
    order = list(ppl.order)
    place = order.index(6)
    order[place : place + 2] = 5, 6
    found = [one.verdict for one in compare_order(replace(ppl, protected=()), order, job, store)]
    assert found == ["within" if at in (place, place + 1) else "equal" for at in range(8)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama-7c"], ["--model", "'llama-7c'", *PUBLISHED]),
        (["llama-7b={model}"], ["--model llama-7b", "8 blocks", "27"]),
    ],
)
def test_models_that_are_not_those_of_the_table_are_refused(
    arguments: Sequence[str], words: Sequence[str], tiny_assets: Path
) -> None:
    with pytest.raises(BadInputError) as refused:
        main(["--model", *(one.format(model=tiny_assets / "model") for one in arguments)])
    assert all(word in str(refused.value) for word in words)


def test_without_a_network_there_is_one_message(tmp_path: Path) -> None:
    """The hub is asked: nothing that is imported has set HF_HUB_OFFLINE."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tests.benchmarks.published", "--storage", str(tmp_path / "results")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    (message,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "--model llama-7b: 'huggyllama/llama-7b'" in message
    assert "ConnectError" in message
    assert not (tmp_path / "results").exists()
