"""A report from what is stored: while a search runs, after a crash, and of several experiments."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.report import main
from shortened_llm.errors import BadInputError
from shortened_llm.records import EvalScores, Experiment, TrialFailure, from_json
from shortened_llm.search.stored.experiment import Begun, publish_report, read_experiment, write_experiment
from shortened_llm.storage.lease import hold_lease
from shortened_llm.storage.store import Store
from tests.reporting.experiments import experiment


def planned() -> Experiment:
    """As it is known when the trials are."""
    full = experiment()
    nothing = {"result": None, "failure": None, "before": EvalScores(), "after": EvalScores()}
    return replace(full, trials=tuple(replace(trial, **nothing) for trial in full.trials))  # type: ignore[arg-type]


def store_result(store: Store, number: int) -> None:
    result = experiment().trials[number].result
    assert result is not None
    store.write("trials", result.fingerprint, result, identity={}, parents=())


def reported(page: str) -> Experiment:
    return from_json(Experiment, Path(page).with_name("trials.json").read_bytes())


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(arguments)
    return capsys.readouterr().out.splitlines()[-1]


def test_a_running_search_is_reported_as_far_as_it_is(local_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    write_experiment(local_store, planned())
    directory = local_store.experiment_url("smollm2-20-40")
    store_result(local_store, 0)
    own = Store(directory)
    own.write("failures", "f5", TrialFailure(fingerprint="f5", cause="out of memory"), identity={}, parents=())
    own.write("begun", "f2", Begun(driver="an earlier one"), identity={}, parents=())
    with hold_lease(directory) as lease:
        for begun in ("f1", "f5", "f6"):
            own.write("begun", begun, Begun(driver=lease.owner), identity={}, parents=())
        page = written(capsys, directory)
    assert page == f"{directory}/report/report.html"
    found = {trial.spec.fingerprint: trial for trial in reported(page).trials}
    assert found["f1"].result == experiment().trials[0].result
    assert found["f5"].failure == "out of memory"
    assert [name for name, trial in found.items() if trial.running] == ["f6"]
    assert [name for name, trial in found.items() if trial.stopped] == ["f2"]
    text = Path(page).read_text(encoding="utf-8")
    assert "This report is partial: 1 of 6 trials finished." in text
    assert "1 running; 1 stopped; 2 waiting; 1 failed" in text


def test_after_a_crash_nothing_runs(local_store: Store) -> None:
    def states() -> list[tuple[bool, bool]]:
        return [(t.running, t.stopped) for t in read_experiment(directory).trials if t.spec.fingerprint == "f6"]

    write_experiment(local_store, planned())
    directory = local_store.experiment_url("smollm2-20-40")
    with hold_lease(directory) as lease:
        assert states() == [(False, False)]
        Store(directory).write("begun", "f6", Begun(driver=lease.owner), identity={}, parents=())
        assert states() == [(True, False)]
        os.utime(next((Path(directory) / "lease").glob("*.json")), (0, 0))  # its driver was killed: nobody renews it
        assert states() == [(False, True)]
    assert states() == [(False, True)]


@pytest.mark.parametrize("place", ["", "/", "/report", "/report/trials.json", "/report/report.html"])
def test_an_older_experiment_is_read_from_its_report(
    local_store: Store, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    page = publish_report(local_store, experiment())
    before = Path(page).read_bytes()
    assert written(capsys, local_store.experiment_url("smollm2-20-40") + place) == page
    assert Path(page).read_bytes() == before


def test_a_search_that_runs_again_keeps_the_report_scores_it_had(local_store: Store) -> None:
    publish_report(local_store, experiment())
    write_experiment(local_store, planned())
    store_result(local_store, 1)
    found = read_experiment(local_store.experiment_url("smollm2-20-40")).trials[1]
    assert found.result == experiment().trials[1].result
    assert found.after == experiment().trials[1].after
    write_experiment(local_store, experiment())
    assert read_experiment(local_store.experiment_url("smollm2-20-40")) == experiment()


def test_a_copied_trials_json_is_reported_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_report(Store.at(str(tmp_path / "results")), experiment())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "trials.json").write_bytes(
        (tmp_path / "results/experiments/smollm2-20-40/report/trials.json").read_bytes()
    )  # fmt: skip
    assert written(capsys, str(copy)) == str(copy / "report.html")
    assert reported(str(copy / "report.html")) == experiment()


def test_several_experiments_become_one_report_beside_their_own(
    tmp_path: Path, local_store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, trials in (("a", experiment().trials[:3]), ("b", experiment().trials[2:])):
        write_experiment(local_store, replace(experiment(), name=name, trials=trials))
    places = [local_store.experiment_url(name) for name in ("a", "b")]
    page = written(capsys, *places)
    assert page == str(tmp_path / "report-a-b" / "report.html")
    merged = reported(page)
    assert [trial.experiments for trial in merged.trials] == [("a",), ("a",), ("a", "b"), ("b",), ("b",), ("b",)]
    assert not (Path(places[0]) / "report").exists()
    assert written(capsys, *places, "--output", "here") == str(tmp_path / "here" / "report.html")
    # The same place twice is one experiment.
    assert written(capsys, places[0], places[0] + "/report") == f"{places[0]}/report/report.html"


def test_what_is_no_experiment_is_refused_with_what_is_allowed(tmp_path: Path, local_store: Store) -> None:
    with pytest.raises(BadInputError, match=r"EXPERIMENT: '.*nowhere' holds no experiment; give the path or URL of"):
        main([str(tmp_path / "nowhere")])
    page = Path(publish_report(local_store, experiment()))
    broken = json.loads(page.with_name("trials.json").read_text())
    del broken["trials"][0]["spec"]["recipes"]
    page.with_name("trials.json").write_text(json.dumps(broken))
    with pytest.raises(BadInputError, match=r"trials.json' is no record .*trials.0.spec.recipes: Field required"):
        main([str(page.parent)])
    page.with_name("trials.json").write_text("{")
    with pytest.raises(BadInputError, match="is no record"):
        main([str(page.parent)])


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, local_store: Store) -> None:
    publish_report(local_store, experiment())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="--output: cannot write to"):
        main([local_store.experiment_url("smollm2-20-40"), "--output", str(tmp_path / "file")])


def test_it_runs_without_torch_and_ray_and_leaves_with_2_on_bad_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.report", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: EXPERIMENT: ")
    code = "import sys, jobs.report; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert loaded.stdout.strip() == "[]"
