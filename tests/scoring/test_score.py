"""From a configuration to block scores: units of work, what is stored, shards, several texts and settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shortened_llm.config import CalibrationConfig, DepthPruning, ExperimentConfig, parse_config
from shortened_llm.criteria import CRITERIA
from shortened_llm.data.sources import Documents, text_roles
from shortened_llm.errors import BadInputError
from shortened_llm.models.directory import load_config, model_directory
from shortened_llm.models.view import size_of
from shortened_llm.pruning.plan import choices, make_plans
from shortened_llm.records import ModelRef, UnitScores, from_json, to_json
from shortened_llm.scoring.job import ScoringJob, Unit, calibration_labels, scoring_jobs, work_name
from shortened_llm.scoring.measure import MEASUREMENTS, measure, pending_units, pending_work
from shortened_llm.scoring.score import score_all, score_units
from shortened_llm.scoring.table import score_table
from shortened_llm.storage.store import Store

EVERY = tuple(CRITERIA)


@pytest.fixture
def job(tiny_model: ModelRef, tmp_path: Path) -> ScoringJob:
    """The tiny trained model, on rows of token ids."""
    path = tmp_path / "rows.jsonl"
    rows = torch.randint(3, 250, (40, 24), generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    calibration = CalibrationConfig(path=str(path), num_sequences=6, sequence_length=24)
    documents = Documents(
        source=calibration, purpose="train", shared_with=(), files=(str(path),), commit=None, field_path="calibration"
    )
    return ScoringJob(
        model=tiny_model,
        documents=documents,
        calibration=calibration,
        pruning=DepthPruning(criteria=EVERY, protect_first=1, protect_last=1),
        criteria=EVERY,
        counts=(2, 4),
    )


def run(units: tuple[Unit, ...], job: ScoringJob, store: Store) -> None:
    for unit in units:
        measure(unit, job, store, device="cpu", memory_gib=None)


def test_every_criterion_scores_and_is_read_back(job: ScoringJob, local_store: Store) -> None:
    units = pending_units(EVERY, job, local_store, num_shards=1)
    assert sorted(unit.name for unit in units) == ["greedy_ppl", "magnitude", "nll+cosine+angle+kl", "taylor"]
    run(units, job, local_store)
    assert pending_units(EVERY, job, local_store, num_shards=1) == ()
    for criterion in EVERY:
        scores = score_units(criterion, job, local_store)
        assert scores == score_units(criterion, job, local_store)
        assert from_json(UnitScores, to_json(scores)) == scores
        assert len(scores.scores) == 8
        assert sorted(scores.order) == list(range(8))
        for count in job.counts:
            assert len(scores.removed(count)) == count
            assert not {0, 7} & set(scores.removed(count))
        has_interval = criterion in ("ppl", "kl", "block_influence", "angular_span")
        assert (scores.standard_errors is not None) == has_interval
        assert (scores.cuts is not None) == has_interval
        for cut in scores.cuts or ():
            assert cut.removed == scores.removed(cut.count)
            assert sum(cut.probabilities) == pytest.approx(cut.count)
        assert (scores.tokens == 0) == (criterion in ("magnitude", "last_n", "random"))
        table = score_table(scores).splitlines()
        assert len([line for line in table if line.strip()[:1].isdigit()]) == 8
    assert score_units("last_n", job, local_store).removed(2) == (5, 6)
    greedy = score_units("greedy_ppl", job, local_store)
    assert greedy.scores[0] is greedy.scores[7] is None


def test_shards_merge_into_the_whole(job: ScoringJob, local_store: Store, tmp_path: Path) -> None:
    walked: tuple[str, ...] = ("ppl", "kl", "block_influence", "angular_span")
    run(pending_units(walked, job, local_store, num_shards=1), job, local_store)
    other = Store.at(str(tmp_path / "sharded"))
    units = pending_units(walked, job, other, num_shards=4)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 1), (1, 3), (3, 4), (4, 6)]
    run(units[1:], job, other)
    assert pending_units(walked, job, other, num_shards=4) == units[:1], "done shards are not repeated"
    with pytest.raises(LookupError, match="1 of 4 parts of ppl"):
        score_units("ppl", job, other, num_shards=4)
    run(units[:1], job, other)
    for criterion in walked:
        whole, merged = score_units(criterion, job, local_store), score_units(criterion, job, other, num_shards=4)
        assert merged.scores == pytest.approx(whole.scores, rel=1e-6)
        assert merged.standard_errors == pytest.approx(whole.standard_errors, rel=1e-3)
        assert (merged.order, merged.sets, merged.fingerprint) == (whole.order, whole.sets, whole.fingerprint)
    assert pending_units(walked, job, other, num_shards=1) == (), "a merge counts as the whole"


def test_what_changes_no_number_is_not_measured_again(job: ScoringJob, local_store: Store) -> None:
    run(pending_units(EVERY, job, local_store, num_shards=1), job, local_store)
    protected = replace(job, pruning=job.pruning.model_copy(update={"protect_first": 2}))
    assert [u.name for u in pending_units(EVERY, protected, local_store, num_shards=1)] == ["greedy_ppl"]
    assert not {0, 1, 7} & set(score_units("angular_span", protected, local_store).removed(4))
    assert pending_units(("ppl",), replace(job, counts=(3,)), local_store, num_shards=1) == ()
    seed = replace(job, calibration=job.calibration.model_copy(update={"seed": 5}))
    assert [u.name for u in pending_units(("ppl", "magnitude"), seed, local_store, num_shards=1)] == ["nll"]


def test_every_row_can_be_measured() -> None:
    for name, row in CRITERIA.items():
        assert row.is_walked or row.measured is None or row.measured in MEASUREMENTS, name
        assert row.options.__doc__, name
        assert row.options() == row.options.model_validate({}), f"every option of {name} has a default"


def searched(tiny_values: dict, **sections: object) -> ExperimentConfig:
    return parse_config(tiny_values | sections)


def scored(config: ExperimentConfig, model: ModelRef, store: Store) -> tuple[list[str], tuple[UnitScores, ...]]:
    """The work that was done, and the scores."""
    jobs = scoring_jobs(config, model, text_roles(config).calibration, {"block": (2,)})
    work = pending_work(jobs, store, num_shards=1)
    for unit, job in work:
        run((unit,), job, store)
    assert pending_work(jobs, store, num_shards=1) == ()
    return [work_name(unit, job) for unit, job in work], score_all(jobs, store)


@pytest.mark.parametrize(
    ("several", "labels"),
    [
        ([{}], (None,)),
        ([{}, {"seed": 5}], ("seed 1234", "seed 5")),
        ([{}, {"path": "c4.jsonl"}], ("wiki", "c4")),
        ([{}, {"path": "c4.jsonl", "seed": 5}], ("wiki seed 1234", "c4 seed 5")),
        ([{}, {"num_sequences": 100}], ("10x128", "100x128")),
        ([{}, {"path": "other/wiki.jsonl"}], ("wiki 1", "wiki 2")),
    ],
)
def test_labels_say_what_differs(several: list[dict], labels: tuple[str | None, ...]) -> None:
    assert calibration_labels([CalibrationConfig(**{"path": "wiki.jsonl"} | one) for one in several]) == labels


def test_calibrations_stand_side_by_side(tiny_values: dict, tiny_model: ModelRef, local_store: Store) -> None:
    text = tiny_values["calibration"]
    criteria = {"criteria": ["ppl", "taylor", "magnitude"], "protect_first": 1, "protect_last": 1}
    both = searched(tiny_values, calibration=[text, {**text, "seed": 5}], pruning=criteria)
    work, scores = scored(both, tiny_model, local_store)
    assert sorted(work) == [
        "magnitude", "nll (seed 1234)", "nll (seed 5)", "taylor (seed 1234)", "taylor (seed 5)",
    ]  # fmt: skip
    assert [one.ranking for one in scores] == [
        "ppl (seed 1234)", "ppl (seed 5)", "taylor (seed 1234)", "taylor (seed 5)", "magnitude",
    ]  # fmt: skip
    assert scores[0].scores != scores[1].scores
    assert both.num_rankings("block") == len(scores)
    alone = searched(tiny_values, calibration={**text, "seed": 5}, pruning=criteria)
    work, (ppl, taylor, magnitude) = scored(alone, tiny_model, local_store)
    assert work == [], "each is what it is alone"
    assert [one.ranking for one in (ppl, taylor, magnitude)] == ["ppl", "taylor", "magnitude"]
    assert (ppl.scores, taylor.scores, magnitude) == (scores[1].scores, scores[3].scores, scores[4])


def test_entries_have_settings_of_their_own(tiny_values: dict, tiny_model: ModelRef, local_store: Store) -> None:
    entries = [
        {"unit": "block", "criteria": ["ppl", "magnitude"], "protect_first": 1, "protect_last": 1},
        {"unit": "block", "criteria": ["ppl", "taylor"], "protect_first": 3, "protect_last": 1, "taylor": {"power": 2}},
    ]
    config = searched(tiny_values, pruning=entries)
    work, scores = scored(config, tiny_model, local_store)
    assert sorted(work) == ["magnitude", "nll", "taylor"], "what both read is measured once"
    assert [(one.ranking, one.protected) for one in scores] == [
        ("ppl (protect_first=1)", (0, 7)),
        ("magnitude", (0, 7)),
        ("ppl (protect_first=3)", (0, 1, 2, 7)),
        ("taylor", (0, 1, 2, 7)),
    ]
    assert scores[0].scores == scores[2].scores
    assert "power=2" in scores[3].protocol
    size = size_of(load_config(model_directory(tiny_model)), "float32")
    plans = make_plans(choices(config.search, scores, size), size)
    labels = {label.ranking for plan in plans for label in plan.labels}
    assert labels == {one.ranking for one in scores}


def test_too_few_rows_are_refused(job: ScoringJob, local_store: Store) -> None:
    many = replace(job, calibration=job.calibration.model_copy(update={"num_sequences": 41}))
    with pytest.raises(BadInputError, match=r"calibration.num_sequences.* 41.* 40"):
        run(pending_units(("ppl",), many, local_store, num_shards=1), many, local_store)
