"""Blocks, sub-layers, heads and channels in one search: at equal parameters, retrained alike, in one report."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shortened_llm.config import EfficiencyConfig, parse_config
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.evaluation.units import EfficiencyUnit
from shortened_llm.models.load import load_model
from shortened_llm.records import SublayersTransform, TensorsTransform, UnitScores, WidthsTransform, of_kind
from shortened_llm.reporting.card import trial_cards
from shortened_llm.reporting.rows import best_of_each_way, search_loss, trial_rows, way_of
from shortened_llm.reporting.sparsity import sparse_lines
from shortened_llm.reporting.view import report_view
from shortened_llm.reporting.ways import WayLine, ways_tables
from shortened_llm.reporting.write import write_report
from shortened_llm.search.stored.experiment import read_experiment
from shortened_llm.search.trial import read_result
from shortened_llm.storage.store import Store
from tests.search.pipeline import Pipeline, small

ENTRIES = [
    {"unit": "block", "criteria": ["ppl"], "protect_first": 1, "protect_last": 1},
    {"unit": "sublayer", "criteria": ["block_influence", "greedy_ppl"], "protect_first": 1, "protect_last": 1},
    {"unit": "width", "criteria": ["flap", "taylor"]},
    {"unit": "width", "criteria": ["flap", "magnitude"], "refit": {"damping": [0.001, 0.1]}, "bias": True},
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
        "ppl", "block_influence (sub-layers)", "greedy_ppl (sub-layers)", "flap (width)", "taylor (width)",
        "flap (width, refit=0.001 or 0.1, 25% held out, bias=True)", "magnitude (width)",
    ]  # fmt: skip
    for spec in pipeline.specs:
        pipeline.trial(spec)
        assert spec.plan.targets == (("parameters", 0.25),)
        assert spec.plan.parameter_ratio == pytest.approx(0.25, abs=0.06)
    experiment = read_experiment(pipeline.store.experiment_url("test"))
    assert all(isinstance(scores, UnitScores) for scores in experiment.unit_scores)
    rows = trial_rows(experiment)
    assert len(rows) == len(pipeline.specs) == 14
    assert {row.status for row in rows} == {"done"}
    assert sum(bool(row.best_of) for row in rows) == 1  # all compete for one place
    write_report(experiment, tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text()
    for words in (
        "flap (width)",
        "greedy_ppl (sub-layers)",
        "of 352 channels kept",
        "attention and MLP of block",
        "refitted output projections",
    ):
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
        is_refitted = of_kind(row.plan.transforms, TensorsTransform) is not None
        assert ("refitted output projections" in cards[row.checkpoint_url]["README.md"]) == is_refitted
        assert pipeline.store.url not in cards[row.checkpoint_url]["pruning.json"]


@pytest.mark.usefixtures("process_group")
def test_ways_are_compared_in_quality_and_speed(tiny_values: dict, local_store: Store, tmp_path: Path) -> None:
    """The best of each way is timed; the report says how they compare, and where the order of speed turns."""
    values = small(tiny_values)
    values["retraining"] |= {"methods": ["none"]}
    values["pruning"] = [ENTRIES[0] | {"criteria": ["ppl", "magnitude"]}, ENTRIES[2]]
    values["search"] = {"ratios": [0.25], "of": "parameters"}
    pipeline = Pipeline(parse_config(values), local_store)
    for spec in pipeline.specs:
        pipeline.trial(spec)
    experiment = read_experiment(local_store.experiment_url("test"))
    best = best_of_each_way(experiment.trials)
    assert {way_of(trial) for trial in best} == {("block",), ("width",)}
    settings = EfficiencyConfig(batch_sizes=(1, 4), output_lengths=(4,), runs=2, warmups=1)
    trials = []
    for trial in experiment.trials:
        if trial in best:
            assert trial.result is not None
            unit = EfficiencyUnit(settings=settings, dense=pipeline.dense)
            models = LoadedModels("float32", "cpu")
            found = evaluate(trial.result.model, (unit,), local_store, models, batch_size=4)
            trial = replace(trial, after=replace(trial.after, efficiency=found.efficiency))
        trials.append(trial)
    experiment = replace(experiment, trials=tuple(trials))
    (table,) = ways_tables(experiment, trial_rows(experiment))
    assert [line.title for line in table.lines] == ["without blocks", "narrower"]
    losses = {way_of(trial): search_loss(trial) for trial in best}
    assert [line.row.loss for line in table.lines] == [losses["block",], losses["width",]]
    assert [shape[0] for shape in table.shapes] == [1, 4]
    assert table.speeds[0].startswith("at batch 1, 4 tokens out: the ")
    (column,) = report_view(experiment).text_columns
    (first, nothing), (second, behind) = table.differences(column)
    assert first.entrant.perplexity(column) < second.entrant.perplexity(column)  # type: ignore[operator]
    assert nothing is not None
    assert behind is not None
    assert nothing.mean == 0 < behind.mean
    write_report(experiment, tmp_path / "report")
    page, text = ((tmp_path / "report" / name).read_text() for name in ("report.html", "report.md"))
    assert "Ways of shortening" in page
    for line in table.lines:
        assert f"{line.speed_ups[table.shapes[0]]:.2f}" in text
    turned = replace(table, lines=tuple(map(_as_if_slow_at_batch_1, table.lines)))
    assert turned.speeds[-1] == (
        "the order of the model without blocks and the narrower model turns between batch 1 and batch 4"
    )


def _as_if_slow_at_batch_1(line: WayLine) -> WayLine:
    """The narrower model."""
    first, last = line.speed_ups
    return replace(line, speed_ups={first: 1.0, last: 2.0} if line.title == "narrower" else {first: 2.0, last: 1.0})


@pytest.mark.usefixtures("process_group")
def test_single_weights_are_compared_with_blocks(tiny_values: dict, local_store: Store, tmp_path: Path) -> None:
    """At equal non-zero parameters, trained alike; the zeros stay, in training too."""
    values = small(tiny_values)
    values["pruning"] = [
        ENTRIES[0],
        {"unit": "weight", "criteria": ["wanda", "sparsegpt"]},
        {"unit": "weight", "criteria": ["mrp"], "allocation": "owl", "owl": {"multiple": 2}, "refine": "dsnot"},
    ]
    values["search"] = {"ratios": [0.25], "of": "nonzero", "controls": ["dense"]}
    values["retraining"] |= {"methods": ["none", "cpt"]}
    pipeline = Pipeline(parse_config(values), local_store)
    for spec in pipeline.specs:
        pipeline.trial(spec)
        size = spec.plan.size
        assert 1 - size.nonzero_parameters / spec.plan.dense.parameters == pytest.approx(0.25, abs=0.06)
    experiment = read_experiment(local_store.experiment_url("test"))
    rows = trial_rows(experiment)
    assert {row.status for row in rows} == {"done"}
    sparse = [row for row in rows if way_of(row.trial) == ("weight",)]
    assert len(sparse) == 6
    for row in sparse:
        result = read_result(local_store, row.trial.spec)
        assert result is not None
        model = load_model(result.model, "float32")
        gone = sum(
            int((weight == 0).sum()) for name, weight in model.named_parameters() if name.endswith("proj.weight")
        )
        assert gone == row.plan.size.parameters - row.plan.size.nonzero_parameters
        assert row.plan.parameter_ratio == 0
    write_report(experiment, tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text()
    for words in ("wanda (weights)", "of the blocks&#39; weights zero", "sparse", "non-zero parameters (millions)"):
        assert words in page
    lines = sparse_lines(rows)
    assert len(lines) == 3
    for line in lines:
        size = line.row.plan.size
        counted = [share * weights for share, weights in zip(line.shares, line.transform.weights, strict=True) if share]
        assert round(sum(counted)) == size.parameters - size.nonzero_parameters
        assert f"{line.bitmask_bytes / 1e9:.3g}" in page
        assert line.packed_bytes is None
        stored = size.nonzero_parameters * size.num_bytes / size.parameters
        assert line.bitmask_bytes == pytest.approx(stored + sum(line.transform.weights) / 8)
    spread = [max(line.shares) - min(line.shares) for line in lines]  # type: ignore[type-var]
    assert spread[2] > 0.1 > max(spread[:2])
    assert [line.transform.exchanged is None for line in lines] == [True, True, False]
    halves = replace(lines[0], transform=replace(lines[0].transform, pattern="2:4"))
    assert halves.packed_bytes == pytest.approx(
        lines[0].row.plan.size.num_bytes - sum(lines[0].transform.weights) * (4 - (4 / 2 + 1 / 8))
    )


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
