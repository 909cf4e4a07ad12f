"""Blocks, sub-layers, heads and channels in one search: at equal parameters, retrained alike, in one report."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shortened_llm.config import parse_config
from shortened_llm.models.load import load_model
from shortened_llm.records import SublayersTransform, UnitScores, WidthsTransform, of_kind
from shortened_llm.reporting.card import trial_cards
from shortened_llm.reporting.rows import trial_rows
from shortened_llm.reporting.write import write_report
from shortened_llm.search.stored.experiment import read_experiment
from shortened_llm.search.trial import read_result
from shortened_llm.storage.store import Store
from tests.search.pipeline import Pipeline, small

ENTRIES = [
    {"unit": "block", "criteria": ["ppl"], "protect_first": 1, "protect_last": 1},
    {"unit": "sublayer", "criteria": ["block_influence", "greedy_ppl"], "protect_first": 1, "protect_last": 1},
    {"unit": "width", "criteria": ["flap", "taylor"]},
]


@pytest.fixture
def pipeline(tiny_values: dict, local_store: Store) -> Pipeline:
    values = small(tiny_values)
    values["pruning"] = ENTRIES
    values["search"] = {"ratios": [0.25], "of": "parameters"}
    return Pipeline(parse_config(values), local_store)


@pytest.mark.usefixtures("process_group")
def test_each_unit_is_scored_retrained_evaluated_and_reported(pipeline: Pipeline, tmp_path: Path) -> None:
    assert [scores.ranking for scores in pipeline.scores] == [
        "ppl", "block_influence (sub-layers)", "greedy_ppl (sub-layers)", "flap (width)", "taylor (width)"
    ]  # fmt: skip
    for spec in pipeline.specs:
        pipeline.trial(spec)
        assert spec.plan.targets == (("parameters", 0.25),)
        assert spec.plan.parameter_ratio == pytest.approx(0.25, abs=0.06)
    experiment = read_experiment(pipeline.store.experiment_url("test"))
    assert all(isinstance(scores, UnitScores) for scores in experiment.unit_scores)
    rows = trial_rows(experiment)
    assert len(rows) == len(pipeline.specs) == 10
    assert {row.status for row in rows} == {"done"}
    assert sum(bool(row.best_of) for row in rows) == 1  # all compete for one place
    write_report(experiment, tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text()
    for words in ("flap (width)", "greedy_ppl (sub-layers)", "of 352 channels kept", "attention and MLP of block"):
        assert words in page
    trained = [row for row in rows if row.checkpoint_url]
    cards = trial_cards(experiment)
    tokens = torch.randint(3, 200, (1, 16), generator=torch.Generator().manual_seed(0))
    for row in trained:
        assert row.checkpoint_url is not None
        plain = AutoModelForCausalLM.from_pretrained(row.checkpoint_url, dtype=torch.float32).eval()
        result = read_result(pipeline.store, row.trial.spec)
        assert result is not None
        with torch.inference_mode():
            assert torch.equal(plain(tokens).logits, load_model(result.model, "float32")(tokens).logits)
        has_zeros = of_kind(row.plan.transforms, SublayersTransform) is not None
        assert ("are zeros in these files" in cards[row.checkpoint_url]["README.md"]) == has_zeros
        if of_kind(row.plan.transforms, WidthsTransform):
            assert plain.config.intermediate_size < 352
            assert re.search(r"\d+ of 352 channels kept", cards[row.checkpoint_url]["README.md"])


@pytest.mark.usefixtures("process_group")
def test_sublayers_go_in_rounds(tiny_values: dict, local_store: Store) -> None:
    """The second round is scored on the retrained model, which lacks those of the first already."""
    values = small(tiny_values)
    values["retraining"] |= {"methods": ["cpt"], "tokens": 4096}
    values["pruning"] = {"unit": "sublayer", "criteria": ["ppl"], "protect_first": 1, "protect_last": 1}
    values["search"] = {"ratios": [0.25], "rounds": [2]}
    pipeline = Pipeline(parse_config(values), local_store)
    (spec,) = pipeline.specs
    assert spec.rounds is not None
    assert (spec.rounds.gone, spec.rounds.unit) == ((2, 4), "sublayer")
    pipeline.trial(spec)
    result = read_result(pipeline.store, spec)
    assert result is not None
    assert result.plan is not None
    lost = [of_kind(run.model.origin or (), SublayersTransform) for run in result.runs]
    numbers = [len(one.removed) if one else 0 for one in lost]
    assert numbers[0] <= numbers[-1] <= 4
    assert result.plan.transforms == result.model.origin
    (scores,) = pipeline.scores
    assert isinstance(scores, UnitScores)
    first = set(scores.removed(2))
    gone = {(block, part) for one in lost[-1:] if one for block, part in one.removed}
    assert {(unit // 2, ("attention", "mlp")[unit % 2]) for unit in first} <= gone or numbers[-1] < 4
