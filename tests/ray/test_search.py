"""The whole loop on the tiny model, on real Ray clusters: killed, resumed, submitted, on S3."""

import contextlib
import datetime
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import s3fs
import yaml
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

from shortened_llm import cluster_metrics, metrics
from shortened_llm.records import Experiment, ReportedTrial, TrialResult, from_json
from shortened_llm.retraining.checkpoint import check_complete
from shortened_llm.retraining.manifest import DamagedCheckpointError
from shortened_llm.search.stored.unneeded import find_unneeded, remove
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete, find_files
from tests.ray.conftest import ROOT, Cluster
from tests.ray.watch import Scraper, get_json, metric_addresses
from tests.s3_server import S3Server

START = [sys.executable, "-m", "jobs.search"]
# Against hanging, and no measure of speed: on two slow cores the processes of a search take minutes to start.
TIMEOUT = 1200
SCALARS = (metrics.TOKENS, metrics.LOSS, metrics.VALIDATION_LOSS, metrics.TOKENS_PER_SECOND, metrics.HELD_OUT_NLL)


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
                assert untrained.unit == retrained.unit
        assert trial.result.after.mean_nll < trial.result.before.mean_nll
        assert trial.after.mean_nll < trial.before.mean_nll


def check_loopback(driver: subprocess.Popen) -> None:
    """No other machine reaches what a search starts on this one; training workers meet on a port that torch opens."""
    listening = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # some end at any time
            if "RayTrainWorker" not in process.name():
                listening += [c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"]
    assert len(listening) >= 3
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}


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


@pytest.mark.timeout(2400)
def test_killed_and_started_again_it_continues(
    tmp_path: Path, tiny_values: dict, local_environment: dict[str, str]
) -> None:
    """SIGKILL during the second of two trials: the first is not repeated, the second resumes from a checkpoint.

    Half of its newest checkpoint and of Ray's list of them is lost too: it resumes from the one before, and says so.
    """
    tiny_values["search"] |= {"ratios": [0.25, 0.5], "rehearsal": True}
    tiny_values["pruning"]["criteria"] = ["magnitude"]
    # Workers outlive their driver by seconds: far more steps than they do in these.
    tiny_values["retraining"] |= {"tokens": 163_840, "checkpoint_tokens": 16_384, "keep_stable_checkpoint": True}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values))
    storage = tmp_path / "results"
    environment = {**local_environment, "RAY_ADDRESS": ""}

    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen([*START, str(config)], cwd=ROOT, env=environment, stdout=log, stderr=log)
    wait_for(lambda: list(storage.glob("trials/*/record.json")), first, "first trial's record")
    (done,) = storage.glob("trials/*/record.json")
    check_loopback(first)
    second = subprocess.run(
        [*START, str(config)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert second.returncode == 2, second.stderr
    assert "another driver" in second.stderr
    wait_for(lambda: len(complete_checkpoints(storage)) >= 2, first, "two checkpoints")
    first.send_signal(signal.SIGKILL)
    first.wait()
    check_rehearsal(tmp_path / "first.log", storage)
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
    assert "rehearsal" not in again.stderr
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
        assert steps[-1] == 160
    for name in ("report.html", "report.md", "trials.csv", "trials.json", "pareto.png"):
        assert (report.parent / name).stat().st_size > 0
    assert not list(storage.glob("experiments/test/train/*/checkpoint_*")), "checkpoints of finished runs were left"
    tiny_values["experiment"] = "fails"
    tiny_values["retraining"] |= {"max_skipped_steps": 1, "cpt": {"learning_rate": 1e30}}
    config.write_text(yaml.safe_dump(tiny_values))
    check_failing_rehearsal(config, storage, environment)
    check_clean_up(Store.at(str(storage)))


def check_rehearsal(log: Path, storage: Path) -> None:
    """Before the first trial, a run lost its workers and went on; nothing but the record of it is left."""
    before_trials = log.read_text().partition("trial 1/2")[0]
    assert "rehearsal: resuming from a checkpoint at step" in before_trials
    assert not (storage / "experiments/test/rehearsal").exists()
    assert len(list(storage.glob("experiments/test/rehearsed/*/record.json"))) == 1


def check_failing_rehearsal(config: Path, storage: Path, environment: dict[str, str]) -> None:
    """Its cause ends the search before any trial begins."""
    known = set(storage.glob("trials/*"))
    failed = subprocess.run(
        [*START, str(config)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert failed.returncode == 1, failed.stderr
    assert "the rehearsal of cpt failed, so that no trial was begun (NonFiniteLossError" in failed.stderr
    assert set(storage.glob("trials/*")) == known
    assert not (storage / "experiments/fails/begun").exists()
    delete(str(storage / "experiments/fails"))


def check_clean_up(store: Store) -> None:
    """All that a search leaves is needed while its experiment is there, and nothing of it afterwards."""
    at_once = datetime.timedelta()
    kinds = {file.path.split("/")[0] for file in find_files(store.url)}
    assert {"scores", "measurements", "tokens", "evaluations", "retrained", "trials", "stable"} <= kinds
    assert find_unneeded(store, min_age=at_once) == []
    delete(store.experiment_url("test"))
    remove(store, find_unneeded(store, min_age=at_once))
    assert find_files(store.url) == []


def check_metrics(cluster: Cluster, scraped: Scraper, result: TrialResult) -> None:
    """What Prometheus would have of a search with one good and one failing trial."""
    assert {address.split(":")[0] for address in metric_addresses(cluster)} == {"127.0.0.1"}
    unknown_on_cpu = {cluster_metrics.OF_TRIALS[metrics.MFU].exported_name}
    assert {metric.exported_name for metric in cluster_metrics.ALL} - unknown_on_cpu <= scraped.series.keys()
    good = {"experiment": "tiny", "trial": "1/2 ppl 25% cpt lr 0.0003 seed 0"}
    tokens = scraped.of("ray_shortened_llm_tokens", **good)
    assert tokens == sorted(tokens)
    assert 1024 <= tokens[-1] <= result.tokens == 32_768
    losses = {round(point.loss, 4) for run in result.runs for point in run.history}
    assert {round(loss, 4) for loss in scraped.of("ray_shortened_llm_loss", **good)} <= losses
    assert min(scraped.of("ray_shortened_llm_tokens_per_second", **good)) > 0
    assert max(scraped.of("ray_shortened_llm_skipped_steps", experiment="tiny")) > 1
    for state in metrics.TRIAL_STATES:
        most = max(scraped.of("ray_shortened_llm_trials", experiment="tiny", state=state))
        assert most == (2 if state == "pending" else 1), state
    for state in ("done", "failed"):
        assert scraped.of("ray_shortened_llm_trials", experiment="tiny", state=state)[-1] == 1
    hours = scraped.of("ray_shortened_llm_accelerator_hours", experiment="tiny")
    assert hours == sorted(hours)
    assert result.accelerator_seconds / 3600 < hours[-1] < 2 * result.accelerator_seconds / 3600
    assert max(scraped.of("ray_shortened_llm_evaluation_queue_length", experiment="tiny")) >= 1
    assert max(scraped.of("ray_shortened_llm_busy_evaluators", experiment="tiny")) == 1


def check_tensorboard(url: str, good: ReportedTrial) -> None:
    """TensorBoard's own reader finds the trials on S3."""
    assert good.result is not None
    runs = EventMultiplexer().AddRunsFromDirectory(url)
    runs.Reload()
    (run,) = [name for name in runs.Runs() if name.endswith(good.spec.fingerprint)]
    shown = {
        name: [make_ndarray(event.tensor_proto).item() for event in runs.Tensors(run, f"ray/tune/{name}")]
        for name in SCALARS
    }
    assert all(shown.values())
    assert shown[metrics.TOKENS][-1] == good.result.tokens
    assert shown[metrics.HELD_OUT_NLL] == [pytest.approx(good.result.after.mean_nll, rel=1e-5)]


def check_dashboard(cluster: Cluster) -> None:
    """Both training runs are on the Train page."""
    runs = get_json(cluster, "/api/train/v2/runs/v1")
    assert [run["status"] for run in runs["train_runs"]] == ["FINISHED"] * 2  # the workers leave the cause, and return


@pytest.mark.timeout(2400)
def test_submitted_as_a_job_with_its_results_on_s3(cluster: Cluster, s3_server: S3Server) -> None:
    """One good and one failing trial: the report is written all the same, and the exit code says that one failed."""
    url = f"s3://{s3_server.bucket}/submitted"
    # Windows that overlap: scoring lasts some seconds, so that whoever looks each second or two sees it.
    stories = "~/.cache/shortened_llm/assets/tiny/texts/stories.jsonl"
    selection = [{"path": stories, "bos": "none", "max_tokens": 2048, "segment_length": 128, "stride": 8}]
    command = [
        "python", "-m", "jobs.submit", "jobs/configs/tiny.yaml", "--address", cluster.dashboard_url,
        "--storage.url", url, "--search.ratios", "[0.25]", "--search.max_failures", "0",
        "--pruning.criteria", '["ppl"]', "--resources.scoring_shards", "3",
        "--evaluation.selection.perplexity", json.dumps(selection),
        "--retraining.cpt.learning_rate", "[3e-4, 1e30]",
    ]  # fmt: skip
    with Scraper(cluster) as scraped:
        ran = subprocess.run(
            command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    output = ran.stdout + ran.stderr
    assert ran.returncode == 1, output
    assert "1 of 2 trials failed (NonFiniteLossError: step" in output
    assert f"report: {url}/experiments/tiny/report/report.html" in output
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
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
    check_metrics(cluster, scraped, good.result)
    check_tensorboard(f"{url}/experiments/tiny/tune", good)
    check_dashboard(cluster)
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
    logs = [path for path in cluster.directory.glob("session_*/**/*") if path.is_file()]
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
