"""The whole loop on the tiny model, on real Ray clusters: killed, resumed, submitted, on S3."""

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs
import yaml

from shortened_llm.records import Experiment, from_json
from shortened_llm.retraining.checkpoint import check_complete
from shortened_llm.retraining.manifest import DamagedCheckpointError
from tests.ray.conftest import ROOT, Cluster
from tests.s3_server import S3Server

START = [sys.executable, "-m", "jobs.search"]
TIMEOUT = 400


def wait_for(condition: Callable[[], object], process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"the search ended before {what}"
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.2)


def check_report(experiment: Experiment) -> None:
    """What every finished tiny search must show."""
    for trial in experiment.trials:
        assert trial.result is not None
        for before, after in (
            (trial.result.before, trial.result.after),
            (trial.before, trial.after),
        ):
            for untrained, retrained in zip(before.perplexity, after.perplexity, strict=True):
                assert (untrained.source, untrained.protocol) == (retrained.source, retrained.protocol)
        assert trial.result.after.mean_nll < trial.result.before.mean_nll
        assert trial.after.mean_nll < trial.before.mean_nll


def complete_checkpoints(storage: Path) -> list[Path]:
    """Of all runs, by step."""
    found = []
    for path in storage.glob("experiments/test/train/*/checkpoint_0*"):
        with contextlib.suppress(DamagedCheckpointError, FileNotFoundError):  # being written, or just deleted
            check_complete(str(path))
            found.append(path)
    return sorted(found, key=lambda path: path.name)


def wait_until_left(storage: Path) -> None:
    """Workers outlive a killed driver by some seconds, and go on writing."""
    while True:
        before = {path: path.stat().st_mtime_ns for path in storage.glob("experiments/test/train/*/*")}
        time.sleep(6)
        with contextlib.suppress(FileNotFoundError):
            if before == {path: path.stat().st_mtime_ns for path in storage.glob("experiments/test/train/*/*")}:
                return


@pytest.mark.timeout(900)
def test_killed_and_started_again_it_continues(
    tmp_path: Path, tiny_values: dict, local_environment: dict[str, str]
) -> None:
    """SIGKILL during the second of two trials: the first is not repeated, the second resumes from a checkpoint.

    Half of its newest checkpoint and of Ray's list of them is lost too: it resumes from the one before, and says so.
    """
    tiny_values["search"]["ratios"] = [0.25, 0.5]
    tiny_values["scoring"]["criteria"] = ["magnitude"]
    # Workers outlive their driver by seconds: far more steps than they do in these.
    tiny_values["retraining"] |= {"tokens": 327_680, "checkpoint_tokens": 16_384}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values))
    storage = tmp_path / "results"
    environment = {**local_environment, "RAY_ADDRESS": ""}

    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen([*START, str(config)], cwd=ROOT, env=environment, stdout=log, stderr=log)
    wait_for(lambda: list(storage.glob("trials/*/record.json")), first, "first trial's record")
    (done,) = storage.glob("trials/*/record.json")
    second = subprocess.run(
        [*START, str(config)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert second.returncode == 2, second.stderr
    assert "another driver" in second.stderr
    wait_for(lambda: len(complete_checkpoints(storage)) >= 2, first, "two checkpoints")
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_until_left(storage)
    older, newest = complete_checkpoints(storage)[-2:]
    for path in sorted(newest.iterdir())[::2]:
        path.unlink()
    snapshot = newest.parent / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    content, written = done.read_text(), done.stat().st_mtime_ns

    again = subprocess.run(
        [*START, str(config)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert again.returncode == 0, again.stderr
    assert "1 of 2 trials are done already" in again.stderr
    assert "run directory put in order: Ray's list of checkpoints is damaged" in again.stderr
    assert f"run directory put in order: {newest.name} is not complete" in again.stderr
    assert f"resuming from a checkpoint at step {int(older.name.split('_')[1])}" in again.stderr
    assert (done.read_text(), done.stat().st_mtime_ns) == (content, written)
    report = Path(again.stdout.splitlines()[-1])
    assert report == storage / "experiments/test/report/report.html"
    experiment = from_json(Experiment, (report.parent / "trials.json").read_text())
    check_report(experiment)
    assert len(experiment.trials) == 2
    for trial in experiment.trials:
        assert trial.result is not None
        steps = [point.step for point in trial.result.runs[-1].history]
        assert steps == sorted(set(steps)), "a step is in the history twice"
        assert steps[-1] == 320
    for name in ("report.html", "report.md", "trials.csv", "trials.json", "pareto.png"):
        assert (report.parent / name).stat().st_size > 0
    assert not list(storage.glob("experiments/test/train/*/checkpoint_*")), "checkpoints of finished runs were left"


@pytest.mark.timeout(900)
def test_submitted_as_a_job_with_its_results_on_s3(cluster: Cluster, s3_server: S3Server) -> None:
    """One good and one failing trial: the report is written all the same, and the exit code says that one failed."""
    url = f"s3://{s3_server.bucket}/submitted"
    command = [
        "python", "-m", "jobs.submit", "jobs/configs/tiny.yaml", "--address", cluster.dashboard_url,
        "--storage.url", url, "--search.ratios", "[0.25]", "--search.max_failures", "0",
        "--scoring.criteria", '["ppl"]', "--resources.scoring_shards", "3",
        "--retraining.cpt.learning_rate", "[3e-4, 1e30]",
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=TIMEOUT)
    output = ran.stdout + ran.stderr
    assert ran.returncode == 1, output
    assert "1 of 2 trials failed (NonFiniteLossError: step" in output
    assert f"report: {url}/experiments/tiny/report/report.html" in output
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    report = f"{s3_server.bucket}/submitted/experiments/tiny/report"
    experiment = from_json(Experiment, fs.cat_file(f"{report}/trials.json"))
    good, failed = sorted(experiment.trials, key=lambda trial: trial.spec.learning_rate)
    check_report(Experiment(**{**{f: getattr(experiment, f) for f in experiment.__slots__}, "trials": (good,)}))
    assert failed.result is None
    assert failed.failure is not None
    assert "NonFiniteLossError" in failed.failure
    assert good.result is not None
    assert good.result.model.url.startswith(url)
    assert b"<html" in fs.cat_file(f"{report}/report.html")
    # The same work under another name, stopped as `ray job stop` does, lets the next driver in at once.
    again = [*command[:-2], "--experiment", "again"]
    stopped = subprocess.run(
        [*again, "--no-wait"], cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert stopped.returncode == 0, stopped.stderr
    lease = f"{s3_server.bucket}/submitted/experiments/again/lease"
    job = stopped.stdout.split()[-1]
    until = time.monotonic() + 120
    while not fs.glob(f"{lease}/*.json"):
        assert time.monotonic() < until, "no lease"
        time.sleep(0.2)
    subprocess.run(["ray", "job", "stop", job], env=cluster.environment, check=True, capture_output=True, timeout=60)
    states = [json.loads(fs.cat_file(name))["state"] for name in fs.glob(f"{lease}/*.json")]
    assert states == ["released"]

    ran = subprocess.run(again, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "are done already" in ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == f"{url}/experiments/again/report/report.html"
    assert json.loads(fs.cat_file(f"{s3_server.bucket}/submitted/experiments/again/config.json"))
    check_no_secret_is_told(cluster, s3_server)


def check_no_secret_is_told(cluster: Cluster, s3_server: S3Server) -> None:
    """The credentials of the cluster's environment are in nothing that it writes or answers."""
    secret = s3_server.secret_key.encode()
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    stored = fs.find(s3_server.bucket)
    assert len(stored) > 20
    assert not [path for path in stored if secret in fs.cat_file(path)]
    logs = [path for path in Path(cluster.directory).glob("session_*/**/*") if path.is_file()]
    assert any(path.name.startswith("job-driver-") for path in logs)
    assert not [path for path in logs if secret in path.read_bytes()]
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    for place in (
        "api/jobs/",
        "api/v0/actors?detail=1&limit=1000",
        "api/v0/runtime_envs?detail=1",
        "api/train/v2/runs/v1",
    ):
        request = urllib.request.Request(f"{cluster.dashboard_url}/{place}")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=60)
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        assert secret not in content
        if place == "api/jobs/":
            assert "again" in {job["metadata"].get("experiment") for job in json.loads(content)}
