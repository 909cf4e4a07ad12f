"""Trials whose blocks go in rounds."""

from dataclasses import replace

import pytest

from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.errors import BadInputError
from shortened_llm.models.load import load_model
from shortened_llm.records import Experiment, TrialSpec, UnitScores
from shortened_llm.reporting import formats
from shortened_llm.reporting.rows import trial_rows
from shortened_llm.scoring.score import score_all
from shortened_llm.search.rounds import divided, steps_to
from shortened_llm.search.stored.experiment import read_experiment
from shortened_llm.search.trial import read_result
from shortened_llm.storage.store import Store
from tests.search.pipeline import Pipeline, small


@pytest.fixture
def in_rounds(tiny_values: dict) -> dict:
    """Half of the blocks, at once and in two rounds."""
    values = small(tiny_values)
    values["retraining"] |= {"methods": ["none", "cpt_lora"], "tokens": 8192}
    values["search"] = {"ratios": [0.5], "rounds": [1, 2]}
    return values


@pytest.fixture
def pipeline(in_rounds: dict, local_store: Store) -> Pipeline:
    return Pipeline(parse_config(in_rounds), local_store)


def test_a_plan_is_tried_at_once_and_in_rounds_by_each_of_its_rankings(pipeline: Pipeline) -> None:
    found = [(spec.method, spec.plan.name, spec.rounds.gone if spec.rounds else None) for spec in pipeline.specs]
    names = {spec.plan.name for spec in pipeline.specs if spec.rounds}
    assert names == {"ppl 50%", "magnitude 50%"}
    assert sorted(gone for method, _, gone in found if method == "cpt_lora" and gone) == [(2, 4), (2, 4)]
    assert all(gone is None for method, _, gone in found if method == "none")  # nothing would be learnt in between
    assert len({spec.fingerprint for spec in pipeline.specs}) == len(pipeline.specs)
    for spec in pipeline.specs:
        if spec.recipes:
            # Each round has its share, and no token is lost.
            assert sum(recipe.num_steps for recipe in spec.recipes) == 8
            assert [recipe.method for recipe in spec.recipes] == ["cpt", "lora"] * (2 if spec.rounds else 1)
            assert [recipe.first_sequence for recipe in spec.recipes] == (
                [0, 16, 32, 48] if spec.rounds else [0, 32]
            ), "and reads on where the one before ended"
            shorter = pipeline.space.at_rung(spec, 0.5)
            assert [recipe.first_sequence for recipe in shorter.recipes] == ([0, 8, 16, 24] if spec.rounds else [0, 16])
            assert {recipe.seed for recipe in spec.recipes} == {0}


def _one(pipeline: Pipeline) -> TrialSpec:
    (spec,) = [spec for spec in pipeline.specs if spec.rounds and spec.plan.name == "magnitude 50%"]
    return spec


@pytest.mark.usefixtures("process_group")
def test_the_second_round_is_chosen_by_the_retrained_model(pipeline: Pipeline) -> None:
    spec = _one(pipeline)
    pipeline.trial(spec)
    result = read_result(pipeline.store, spec)
    assert result is not None
    assert [run.model.fingerprint for run in result.runs] == [run.fingerprint for run in pipeline.space.runs(spec)]
    assert [run.model.num_blocks for run in result.runs] == [6, 6, 4, 4]
    middle, end = result.runs[1].model, result.runs[-1].model
    (scores,) = score_all((pipeline.space.scoring(spec, middle, 2),), pipeline.store)
    kept = [block for block in range(6) if block not in scores.removed(2)]
    assert middle.origin is not None
    assert end.origin is not None
    assert end.origin[0].kept == tuple(middle.origin[0].kept[block] for block in kept)
    assert load_model(end, "float32").config.num_hidden_layers == 4
    # The first round took what the dense model's scores choose, and the last what is reported.
    assert result.plan is not None
    assert result.plan.transforms == end.origin
    assert set(_dense_scores(pipeline).removed(2)) < set(result.plan.removed_blocks)
    row = next(row for row in trial_rows(_experiment(pipeline)) if row.trial.spec == spec)
    assert row.plan.removed_blocks == result.plan.removed_blocks
    first, last = (formats.block_ranges(gone) for gone in (_dense_scores(pipeline).removed(2), row.plan.removed_blocks))
    assert row.gone == (first, first, last, last)
    assert row.method == "cpt_lora in 2 rounds"


def _dense_scores(pipeline: Pipeline) -> UnitScores:
    return next(scores for scores in pipeline.scores if scores.criterion == "magnitude")


def _experiment(pipeline: Pipeline) -> Experiment:
    return read_experiment(pipeline.store.experiment_url("test"))


def test_what_later_rounds_go_by_is_part_of_a_run(pipeline: Pipeline) -> None:
    spec = _one(pipeline)
    assert spec.rounds is not None
    runs = pipeline.space.runs(spec)
    other = replace(spec, rounds=replace(spec.rounds, way="another"))
    assert [a == b for a, b in zip(runs, pipeline.space.runs(other), strict=True)] == [True, True, False, False]
    assert [len(transforms[0].kept) for transforms in spec.shapes] == [6, 6, 4, 4]


def test_steps_are_divided_without_a_loss(pipeline: Pipeline) -> None:
    (recipe, *_) = _one(pipeline).recipes
    for steps, rounds in ((10, 3), (7, 2), (5, 5)):
        parts = divided((replace(recipe, num_steps=steps, warmup_steps=2, decay_steps=2),), rounds)
        assert sum(part.num_steps for part in parts) == steps
        assert all(0 <= part.warmup_steps < part.num_steps for part in parts)
        assert all(1 <= part.decay_steps <= part.num_steps - part.warmup_steps for part in parts)
    assert steps_to(10, 3) == (3, 7, 10)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"search": {"ratios": [0.5], "rounds": []}}, "rounds lists nothing"),
        ({"search": {"ratios": [0.5], "rounds": [0]}}, r"search\.rounds\.0.*greater than or equal to 1"),
        ({"search": {"ratios": [0.5], "rounds": [2, 2]}}, "listed twice"),
        ({"search": {"ratios": [0.5], "rounds": [2], "equal_seconds": True}}, "rounds and equal_seconds"),
        ({"search": {"ratios": [0.5], "rounds": [2]}, "methods": ["none"]}, "no method of .'none'. trains the weights"),
        ({"search": {"ratios": [0.5], "rounds": [3]}, "tokens": 4096}, "3 rounds divide the tokens of a cpt run"),
    ],
)
def test_rounds_that_cannot_be_are_refused(in_rounds: dict, changed: dict, words: str) -> None:
    in_rounds["search"] = changed.pop("search")
    in_rounds["retraining"] |= changed
    with pytest.raises(BadInputError, match=words):
        parse_config(in_rounds)


def test_a_range_of_rounds_is_a_list(in_rounds: dict) -> None:
    in_rounds["search"]["rounds"] = 2
    config: ExperimentConfig = parse_config(in_rounds)
    assert config.search.rounds == (2,)
