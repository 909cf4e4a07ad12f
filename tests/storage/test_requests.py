"""What a search that runs again asks of the store does not grow with the files of what is done."""

from dataclasses import replace

import pytest

from shortened_llm.records import Experiment
from shortened_llm.retraining.run_directory import repair_run_directory
from shortened_llm.search.stored.experiment import read_config, read_experiment, write_experiment
from shortened_llm.search.trial import read_result
from shortened_llm.storage.lease import hold_lease
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, write_bytes
from tests.faulty_proxy import FaultyProxy
from tests.reporting.experiments import experiment


def stored(store: Store, count: int) -> Experiment:
    """An experiment with `count` finished trials and the files that these leave."""
    first = experiment().trials[0]
    assert first.result is not None
    trials = []
    for number in range(count):
        fingerprint = f"{number:016x}"
        spec, result = replace(first.spec, fingerprint=fingerprint), replace(first.result, fingerprint=fingerprint)
        trials.append(replace(first, spec=spec, result=None))
        store.write("trials", fingerprint, result, identity={}, parents=())
        for name in ("result.json", "progress.csv", "events.out"):
            write_bytes(join(store.experiment_url("e"), "tune", f"20261122-{number:06d}", fingerprint, name), b"x")
        write_bytes(join(store.url, "retrained", fingerprint, "attempt-00000000", "model.safetensors"), b"x")
    planned = replace(experiment(), name="e", trials=tuple(trials))
    write_experiment(store, planned)
    return planned


def resumed(store: Store, planned: Experiment) -> None:
    """What a search asks of the store from its submission to its first new trial."""
    store.probe()
    assert read_config(store, "e") is None
    with hold_lease(store.experiment_url("e"), expiry_seconds=3600.0):  # renewals follow the clock
        assert all(read_result(store, trial.spec) for trial in planned.trials)
        repair_run_directory(join(store.experiment_url("e"), "train", "f" * 16), num_to_keep=2)


@pytest.mark.parametrize("work", ["search", "report"])
def test_lists_do_not_grow_with_finished_trials(faulty_store: Store, proxy: FaultyProxy, work: str) -> None:
    lists, others = [], []
    for count in (5, 50):
        store = Store(join(faulty_store.url, str(count)))
        planned = stored(store, count)
        proxy.requests.clear()
        if work == "search":
            resumed(store, planned)
        else:
            assert read_experiment(store.experiment_url("e")).trials[-1].result is not None
        lists.append(sum("list-type" in request.path for request in proxy.requests))
        others.append(len(proxy.requests) - lists[-1])
    assert lists[0] == lists[1]
    assert others[1] - others[0] <= 2 * 45  # for each record its size, then its content
