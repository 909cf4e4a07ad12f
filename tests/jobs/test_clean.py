"""What no experiment needs goes; what a report or a rerun reads stays."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.clean import main
from jobs.report import main as report
from shortened_llm.errors import BadInputError
from shortened_llm.records import Experiment, ReportedTrial
from shortened_llm.search.stored.experiment import add_runs, own_experiment, read_experiment, write_experiment
from shortened_llm.storage.lease import hold_lease
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import find_files, join, write_bytes
from tests.reporting.experiments import experiment

NAME = "smollm2-20-40"
DENSE, OTHER = "d" * 16, "e" * 16
SCORE = {"value": 1.0}


def stored_experiment(store: Store, *, finished: bool = True) -> Experiment:
    """An experiment with everything that a search leaves: trials, runs with weights, scores, tokens, checkpoints."""
    plan = replace(experiment(), dense_fingerprint=DENSE)
    trials = tuple(with_stored_model(store, trial) for trial in plan.trials if trial.result is not None)
    if not finished:
        trials = (*trials[:-1], replace(trials[-1], result=None))
    for trial in trials:
        if trial.result is not None:
            store.write("trials", trial.spec.fingerprint, trial.result, identity={}, parents=runs_of(trial))
    write_experiment(store, replace(plan, trials=tuple(replace(trial, result=None) for trial in trials)))
    with_payload(store, "models", DENSE)
    for number, kind in enumerate(("scores", "measurements", "evaluations", "tokens", "token_shards")):
        with_payload(store, kind, f"c{number}" * 8, DENSE)
    own = store.experiment_url(NAME)
    write_bytes(join(own, "train", "a" * 16, "checkpoint_00000001_ab", "weights"), b"w" * 1000)
    write_bytes(join(own, "tune", "20261122-130219", "f1", "result.json"), b"{}")
    with hold_lease(own):
        pass
    return read_experiment(own)


def with_stored_model(store: Store, trial: ReportedTrial) -> ReportedTrial:
    if trial.result is None:
        return trial
    runs = []
    for run in trial.result.runs:
        fingerprint = run.model.fingerprint
        url = with_payload(store, "retrained", fingerprint, DENSE)
        runs.append(replace(run, model=replace(run.model, url=url)))
        store.write("evaluations", f"of-{fingerprint}", SCORE, identity={}, parents=(fingerprint,))
    return replace(trial, result=replace(trial.result, runs=tuple(runs)))


def runs_of(trial: ReportedTrial) -> list[str]:
    return [run.model.fingerprint for run in trial.result.runs] if trial.result else []


def with_payload(store: Store, kind: str, fingerprint: str, *parents: str) -> str:
    url = store.attempt_url(kind, fingerprint)
    write_bytes(join(url, "payload.bin"), b"p" * 100)
    store.write(kind, fingerprint, {"url": url}, identity={}, parents=parents)
    return url


def leave_rubbish(store: Store) -> set[str]:
    """What a killed writer, a removed experiment and a stalled driver leave; returns the paths, below the storage."""
    killed = store.attempt_url("retrained", "9" * 16)
    second = store.attempt_url("models", DENSE)  # beside a record that names another attempt
    for url in (killed, second):
        write_bytes(join(url, "weights.bin"), b"w" * 5000)
    with_payload(store, "retrained", "7" * 16, OTHER)
    with_payload(store, "models", OTHER)
    store.write("trials", "8" * 16, SCORE, identity={}, parents=())
    store.write("evaluations", "a" * 16, SCORE, identity={}, parents=("7" * 16,))
    store.write("scores", "6" * 16, SCORE, identity={}, parents=(OTHER,))
    write_bytes(join(store.experiment_url(NAME), "lease", "00000000.json"), b"{}")
    return {
        *(url.removeprefix(store.url + "/") for url in (killed, second)),
        *(f"{kind}/{digit * 16}" for kind, digit in (("retrained", "7"), ("trials", "8"), ("evaluations", "a"))),
        f"models/{OTHER}",
        f"scores/{'6' * 16}",
        f"experiments/{NAME}/train",
        f"experiments/{NAME}/lease/00000000.json",
    }


def paths(store: Store) -> set[str]:
    """But for the lease of the clean-up itself, which stays."""
    return {file.path for file in find_files(store.url) if not file.path.startswith("cleaning/")}


def below(path: str, places: set[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


def test_rubbish_is_shown_then_removed_and_nothing_else(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored_experiment(store)
    rubbish = leave_rubbish(store)
    everything = paths(store)
    main([store.url, "--min-age", "0"])
    shown = capsys.readouterr().out
    assert paths(store) == everything
    assert "attempts             2     10.0 kB" in shown
    assert "train runs           1      1.0 kB" in shown
    main([store.url, "--min-age", "0", "--remove"])
    assert f"removed {len(rubbish)} things" in capsys.readouterr().out
    assert paths(store) == {path for path in everything if not below(path, rubbish)}
    assert read_experiment(store.experiment_url(NAME)) == before
    report([store.experiment_url(NAME)])
    capsys.readouterr()
    main([store.url, "--min-age", "0"])
    assert capsys.readouterr().out.strip() == "nothing to remove"


def test_what_is_young_is_left_alone(local_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    stored_experiment(local_store)
    leave_rubbish(local_store)
    everything = paths(local_store)
    main([local_store.url, "--remove"])
    assert paths(local_store) == everything
    attempt = next(Path(local_store.url).glob(f"retrained/{'9' * 16}/attempt-*"))
    for file in attempt.iterdir():
        os.utime(file, (0, 0))
    capsys.readouterr()
    main([local_store.url, "--remove"])
    assert "removed 1 things" in capsys.readouterr().out
    assert paths(local_store) == {path for path in everything if attempt.name not in path}


def test_a_live_experiment_is_left_alone(store: Store) -> None:
    stored_experiment(store)
    own = store.experiment_url(NAME)
    write_bytes(join(own, "lease", "00000000.json"), b"{}")
    with hold_lease(own):
        # Taking the lease removes older numbers, so that one comes after it.
        write_bytes(join(own, "lease", "00000000.json"), b"{}")
        for kind, fingerprint in (("retrained", "9" * 16), ("models", DENSE)):  # which it may be writing
            write_bytes(join(store.attempt_url(kind, fingerprint), "weights.bin"), b"w" * 5000)
        everything = paths(store)
        main([store.url, "--min-age", "0", "--remove"])
        assert paths(store) == everything
    main([store.url, "--min-age", "0", "--remove"])
    assert len(everything - paths(store)) >= 2


def test_an_unfinished_experiment_keeps_its_checkpoints_and_runs(local_store: Store) -> None:
    stored_experiment(local_store, finished=False)
    with_payload(local_store, "retrained", "5" * 16, DENSE)
    with_payload(local_store, "retrained", "4" * 16, "5" * 16)
    everything = paths(local_store)
    main([local_store.url, "--min-age", "0", "--remove"])
    assert paths(local_store) == everything


def test_no_search_begins_while_things_are_removed(local_store: Store) -> None:
    stored_experiment(local_store)
    with (
        hold_lease(join(local_store.url, "cleaning")),
        pytest.raises(BadInputError, match=r"storage\.url: jobs\.clean is removing"),
        own_experiment(local_store, "another"),
    ):
        pytest.fail("it began")
    main([local_store.url, "--min-age", "0", "--remove"])
    with own_experiment(local_store, "another"):
        pass


def test_runs_outside_a_search_are_needed_and_stop_nothing(local_store: Store) -> None:
    """`jobs.retrain` leaves no plan, but says which runs it made."""
    stored_experiment(local_store)
    kept, lost = "5" * 16, "4" * 16
    for fingerprint in (kept, lost):
        with_payload(local_store, "retrained", fingerprint, OTHER)
    with hold_lease(local_store.experiment_url("alone")):
        add_runs(local_store, "alone", OTHER, ["3" * 16])
    rubbish = leave_rubbish(local_store) - {f"models/{OTHER}", f"scores/{'6' * 16}"}
    unfinished = paths(local_store)
    main([local_store.url, "--min-age", "0", "--remove"])
    gone = rubbish - {f"retrained/{'7' * 16}", f"evaluations/{'a' * 16}"}  # of a dense model that is still worked on
    assert paths(local_store) == {path for path in unfinished if not below(path, gone)}
    with_payload(local_store, "retrained", "3" * 16, OTHER)
    add_runs(local_store, "alone", OTHER, [kept])
    main([local_store.url, "--min-age", "0", "--remove"])
    found = {path.split("/")[1] for path in paths(local_store) if path.startswith("retrained/")}
    assert {kept, "3" * 16} <= found
    assert not {lost, "7" * 16} & found


@pytest.mark.parametrize(
    "damaged", [{}, {"experiment.json": b"{"}, {"experiment.json": b'{"trials": []}'}, {"runs.json": b"{"}]
)
def test_an_experiment_without_a_plan_may_need_any_record(local_store: Store, damaged: dict[str, bytes]) -> None:
    """As may one whose plan is there, but not what was run beside it."""
    other = replace(stored_experiment(local_store), name="other", trials=())
    rubbish = leave_rubbish(local_store)
    with hold_lease(local_store.experiment_url("other")):
        pass
    if "runs.json" in damaged:
        write_experiment(local_store, other)
    for name, content in damaged.items():
        write_bytes(join(local_store.experiment_url("other"), name), content)
    everything = paths(local_store)
    main([local_store.url, "--min-age", "0", "--remove"])
    gone = {place for place in rubbish if "attempt-" in place or place.startswith("experiments/")}
    assert paths(local_store) == {path for path in everything if not below(path, gone)}


def test_a_payload_that_another_record_names_stays(local_store: Store) -> None:
    stored_experiment(local_store)
    url = local_store.attempt_url("token_shards", "f" * 16)
    write_bytes(join(url, "tokens-00000.npy"), b"t")
    name = url.rsplit("/", 1)[-1]
    local_store.write(
        "tokens", "b" * 16, {"files": [f"{'f' * 16}/{name}/tokens-00000.npy"]}, identity={}, parents=(DENSE,)
    )
    main([local_store.url, "--min-age", "0", "--remove"])
    assert any(name in path for path in paths(local_store))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "STORAGE: is empty"),
        ([__file__], "test_clean.py' is no directory"),
        (["/no/such/place"], "'/no/such/place' is no directory"),
        ([".", "--min-age", "inf"], "--min-age: is inf; allowed are hours from 0 to 1,000,000"),
        ([".", "--min-age", "nan"], "--min-age: is nan"),
    ],
)
def test_what_is_no_storage_is_left_alone(arguments: list[str], words: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(words)):
        main([*arguments, "--remove"])


def test_a_damaged_record_stops_everything(local_store: Store) -> None:
    stored_experiment(local_store)
    leave_rubbish(local_store)
    write_bytes(join(local_store.url, "scores", "0" * 16, "record.json"), b"{")
    everything = paths(local_store)
    with pytest.raises(BadInputError, match=f"scores/{'0' * 16}/record.json is no record; look at it"):
        main([local_store.url, "--min-age", "0", "--remove"])
    assert paths(local_store) == everything


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(["nowhere"], "STORAGE"), ([".", "--min-age", "-1"], "--min-age"), (["s3://me:secret@bucket/x"], "credentials")],
)
def test_bad_arguments_are_refused(arguments: list[str], field: str) -> None:
    with pytest.raises(BadInputError, match=field) as refusal:
        main(arguments)
    assert "secret@" not in str(refusal.value)


def test_it_runs_without_torch_and_ray_and_leaves_with_its_exit_code(local_store: Store) -> None:
    stored_experiment(local_store)
    command = [sys.executable, "-m", "jobs.clean"]
    done = subprocess.run([*command, local_store.url], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.strip()) == (0, "nothing to remove")
    assert subprocess.run([*command, "nowhere"], capture_output=True, timeout=100).returncode == 2
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == 2
    code = "import sys, jobs.clean; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert loaded.stdout.strip() == "[]"


def test_of_two_who_remove_the_second_leaves_the_first_alone(local_store: Store) -> None:
    """The lease of the first is no file that the second may take away."""
    write_bytes(join(local_store.url, "models", "x"), b"")
    with hold_lease(join(local_store.url, "cleaning"), expiry_seconds=2) as lease:
        with pytest.raises(BadInputError, match="another driver"):
            main([local_store.url, "--remove"])
        assert find_files(join(local_store.url, "cleaning/lease"))
        assert not lease.lost.is_set()
