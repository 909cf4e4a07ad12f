"""How far a search is, from its records and from what Ray Tune wrote beside them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.status import main
from shortened_llm.errors import BadInputError
from shortened_llm.records import (
    EvalScores,
    ReportedTrial,
    TrialFailure,
    TrialSpec,
    accelerator_seconds,
    from_json,
)
from shortened_llm.search.cluster.tuner import directory_name
from shortened_llm.search.status import SearchStatus
from shortened_llm.search.stored.experiment import Begun, write_experiment
from shortened_llm.storage.lease import hold_lease
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, write_bytes
from tests.reporting.experiments import experiment, recipe

NAME = "smollm2-20-40"
PLANNED_TOKENS = 40_960
"""Of each trial of that experiment."""


def tune_line(step: int, tokens: int, loss: float, hours: float) -> str:
    """As Tune writes what a run reports: metrics, then what it adds."""
    return json.dumps({
        "tokens": tokens, "step": step, "loss": loss, "learning_rate": 0.0003, "gradient_norm": 2.56,
        "accelerator_hours": hours, "skipped_steps": 0, "loss_spikes": 0, "tokens_per_second": 100.0,
        "memory_gib": 6.4, "seconds_left": 24.2, "timesteps_total": tokens, "timestamp": 1795700129,
        "checkpoint_dir_name": None, "done": False, "training_iteration": step, "date": "2026-11-26_13-35-29",
        "pid": 25247, "config": {"trial": {"fingerprint": "f6", "learning_rate": 0.0003}},
    })  # fmt: skip


def write_reports(store: Store, spec: TrialSpec, lines: Sequence[str]) -> None:
    place = join(store.experiment_url(NAME), "tune", NAME, directory_name(spec.name, spec.fingerprint), "result.json")
    write_bytes(place, "\n".join(lines).encode())


def unfinished(trial: ReportedTrial) -> ReportedTrial:
    return replace(trial, result=None, failure=None, before=EvalScores(), after=EvalScores())


@contextmanager
def half_way(store: Store) -> Iterator[str]:
    """A search that runs: trials 1 and 2 are done, 3 was stopped, 4 waits, 5 failed, 6 runs."""
    full = experiment()
    write_experiment(store, replace(full, trials=tuple(map(unfinished, full.trials))))
    write_bytes(join(store.experiment_url(NAME), "config.json"), b"{}")
    for trial in full.trials[:2]:
        store.write("trials", trial.spec.fingerprint, trial.result, identity={}, parents=())
    own = Store(store.experiment_url(NAME))
    own.write("failures", "f5", TrialFailure(fingerprint="f5", cause="out of memory"), identity={}, parents=())
    own.write("begun", "f3", Begun(driver="an earlier one"), identity={}, parents=())
    with hold_lease(own.url) as lease:
        own.write("begun", "f6", Begun(driver=lease.owner), identity={}, parents=())
        yield own.url


def status_of(place: str, capsys: pytest.CaptureFixture[str]) -> SearchStatus:
    main([place, "--json"])
    return from_json(SearchStatus, capsys.readouterr().out)


def test_a_running_search_says_how_far_it_is(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with half_way(store) as place:
        lines = [tune_line(5, 5120, 4.5, 0.02), tune_line(10, 10_240, 3.51, 0.04), '{"tokens": 15360, "st']
        write_reports(store, experiment().trials[5].spec, lines)
        found = status_of(place, capsys)
        main([place])
    text = capsys.readouterr().out
    assert found.driver is not None
    assert found.states == {"done": 2, "running": 1, "stopped": 1, "waiting": 1, "failed": 1}
    assert (found.tokens, found.planned_tokens) == (2 * PLANNED_TOKENS + 10_240, 6 * PLANNED_TOKENS)
    running = found.trials[5]
    assert running.last is not None
    assert (running.state, running.last.step, running.last.loss) == ("running", 10, 3.51)
    assert running.begun is not None
    assert found.trials[2].last is None
    # Both that are done took 2 x 40,960 / 410 accelerator-seconds each, and 131 s as trials.
    assert found.accelerator_hours == pytest.approx(2 * 2 * PLANNED_TOKENS / 410 / 3600 + 0.04)
    left = 3 * PLANNED_TOKENS - 10_240
    assert found.seconds_left == pytest.approx(left * 131 / PLANNED_TOKENS)
    assert "2 done, 1 running, 1 stopped, 1 waiting, 1 failed (waiting since 20" in text
    assert "6. taylor 40% cpt lr 0.0003 seed 0: running since 20" in text
    assert "step 10, 10,240 of 40,960 tokens, loss 3.51 at 2026-11-26 13:35 UTC" in text
    assert "3. ppl 40% cpt lr 0.0001 seed 0: stopped, begun 20" in text
    assert "nothing reported yet" in text
    assert "5. taylor 40% cpt lr 0.0001 seed 0: failed: out of memory" in text


def test_after_a_crash_nothing_is_left_to_wait_for(local_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with half_way(local_store) as place:
        pass
    found = status_of(place, capsys)
    assert (found.driver, found.seconds_left) == (None, None)
    assert found.states == {"done": 2, "stopped": 2, "waiting": 1, "failed": 1}


def test_runs_that_follow_one_another_add_up_with_what_was_done_twice(
    local_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    full = experiment()
    spec = replace(full.trials[5].spec, method="cpt_lora", recipes=(recipe("cpt"), recipe("lora")))
    write_experiment(local_store, replace(full, trials=(replace(full.trials[5], spec=spec),)))
    cpt = [tune_line(step, 1024 * step, 4.0, step / 20) for step in (10, 20, 30, 20, 30, 40)]  # goes on from step 10
    lora = [tune_line(step, 40_960 + 1024 * step, 3.2, step / 40) for step in (10, 5)]  # begins anew
    write_reports(local_store, spec, [*cpt, *lora])
    found = status_of(local_store.experiment_url(NAME), capsys)
    assert found.accelerator_hours == pytest.approx(2.0 + 0.125 + 1.0 + 0.125)
    assert (found.tokens, found.planned_tokens) == (46_080, 2 * PLANNED_TOKENS)


def test_what_a_run_took_over_was_not_lost(local_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes on from a shorter run that had cost 10 hours, is lost twice, and begins there again each time."""
    trial = experiment().trials[5]
    write_experiment(local_store, replace(experiment(), trials=(unfinished(trial),)))
    hours = [(20, 11.0), (30, 12.0), (20, 11.0), (20, 11.0), (30, 12.0)]
    write_reports(local_store, trial.spec, [tune_line(step, 1024 * step, 4.0, h) for step, h in hours])
    assert status_of(local_store.experiment_url(NAME), capsys).accelerator_hours == pytest.approx(12.0 + 1.0)


def test_what_a_lower_rung_cost_is_counted_with_that(local_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """It cost as much as its runs say; the next rung goes on from it at 10 hours."""
    first, second = experiment().trials[0], unfinished(experiment().trials[5])
    lower = replace(first, spec=replace(first.spec, candidate="c", rung=0.3))
    higher = replace(second, spec=replace(second.spec, candidate="c", rung=1.0))
    assert lower.result is not None
    write_experiment(local_store, replace(experiment(), trials=(unfinished(lower), higher)))
    local_store.write("trials", lower.spec.fingerprint, lower.result, identity={}, parents=())
    paid = accelerator_seconds(lower.result.runs) / 3600
    write_reports(local_store, higher.spec, [tune_line(s, 1024 * s, 4.0, h) for s, h in ((20, 10.0), (30, 12.0))])
    found = status_of(local_store.experiment_url(NAME), capsys)
    assert found.accelerator_hours == pytest.approx(paid + 2.0)


def test_a_search_that_has_planned_no_trial_yet_is_being_prepared(
    local_store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # whose ./results is the store
    with hold_lease(local_store.experiment_url("new")) as lease:
        main(["new"])
        assert capsys.readouterr().out.startswith(f"new: run by {lease.owner}\nno trials yet: ")
    with pytest.raises(BadInputError, match="EXPERIMENT: 'new' holds no experiment"):
        main(["new"])
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="EXPERIMENT: 'file' holds no experiment"):
        main(["file"])


def test_it_runs_without_torch_and_ray() -> None:
    code = "import sys, jobs.status; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert loaded.stdout.strip() == "[]"
