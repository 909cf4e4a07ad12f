"""A report and cards from what is stored, some of which is damaged or cannot be written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.records import EvalScores, Experiment, Provenance, SourceFacts, TrialFailure
from shortened_llm.reporting.view import report_view
from shortened_llm.search.stored.experiment import publish_report, read_experiment, write_experiment
from shortened_llm.search.stored.provenance import publish_cards, publish_trained_card
from shortened_llm.storage.store import Store
from tests.reporting.experiments import experiment


def planned() -> Experiment:
    """As it is known when the trials are."""
    full = experiment()
    return replace(
        full,
        trials=tuple(
            replace(trial, result=None, failure=None, before=EvalScores(), after=EvalScores()) for trial in full.trials
        ),
    )


def test_an_experiment_may_be_called_report(local_store: Store) -> None:
    write_experiment(local_store, replace(planned(), name="report"))
    directory = local_store.experiment_url("report")
    publish_report(local_store, read_experiment(directory))
    for place in (directory, f"{directory}/report", f"{directory}/report/report.html"):
        assert read_experiment(place).name == "report"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
        (b"[]", "TypeError"),
        (b"{}", "KeyError"),
        (b'{"record": {"fingerprint": "f1"}}', "model: Field required"),
    ],
)
def test_a_damaged_record_costs_its_own_trial_alone(local_store: Store, content: bytes, said: str) -> None:
    write_experiment(local_store, planned())
    for trial in experiment().trials[:2]:
        local_store.write("trials", trial.spec.fingerprint, trial.result, identity={}, parents=())
    (Path(local_store.url) / "trials" / "f1" / "record.json").write_bytes(content)
    rows = report_view(read_experiment(local_store.experiment_url("smollm2-20-40"))).rows
    status = {row.trial.spec.fingerprint: row.status for row in rows}
    assert (status["f1"], status["f2"]) == ("failed", "done")
    (cause,) = (row.trial.failure for row in rows if row.trial.spec.fingerprint == "f1")
    assert cause is not None
    assert f"{local_store.url}/trials/f1/record.json" in cause
    assert said in cause


def test_a_damaged_record_of_a_failure_is_a_failure_too(local_store: Store) -> None:
    write_experiment(local_store, planned())
    directory = local_store.experiment_url("smollm2-20-40")
    Store(directory).write(
        "failures", "f5", TrialFailure(fingerprint="f5", cause="out of memory"), identity={}, parents=()
    )
    (Path(directory) / "failures" / "f5" / "record.json").write_text("{")
    (found,) = (trial for trial in read_experiment(directory).trials if trial.spec.fingerprint == "f5")
    assert found.failure is not None
    assert "JSONDecodeError" in found.failure


def test_a_model_has_a_card_from_its_export_on(tmp_path: Path) -> None:
    origin = Provenance(
        base_model="base", on_hub=False, base_license="mit", dtype="bfloat16",
        sources=(SourceFacts(name="c4", path="allenai/c4", role="training", license="cc-by-nc-4.0"),),
    )  # fmt: skip
    one = experiment().trials[0]
    assert one.result is not None
    last = one.result.runs[-1]
    export = tmp_path / "export"
    export.mkdir()
    exported = replace(last, model=replace(last.model, url=str(export)))
    publish_trained_card(one.spec, one.plan, (exported,), origin)
    assert "Not for commercial use" in (export / "README.md").read_text()
    assert json.loads((export / "pruning.json").read_text())["removed_blocks"] == list(one.spec.plan.removed_blocks)
    (export / "README.md").write_text("with scores")
    publish_trained_card(one.spec, one.plan, (exported,), origin)
    assert (export / "README.md").read_text() == "with scores"


def test_a_card_that_cannot_be_written_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "f1").write_text("a file where the model's directory was")
    trials = []
    for trial in experiment().trials[:2]:
        assert trial.result is not None
        (last,) = trial.result.runs
        model = replace(last.model, url=str(tmp_path / last.model.fingerprint))
        trials.append(replace(trial, result=replace(trial.result, runs=(replace(last, model=model),))))
    publish_cards(replace(experiment(), trials=tuple(trials)))
    assert "with 24 of 30 blocks" in (tmp_path / "f2" / "README.md").read_text()
    assert json.loads((tmp_path / "f2" / "pruning.json").read_text())["method"] == "cpt"
    assert f"the model card at {tmp_path / 'f1'} cannot be written" in caplog.text
