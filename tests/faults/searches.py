"""A small search that a drill starts, disturbs and starts again, and what it left."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from shortened_llm.records import Experiment, from_json
from shortened_llm.retraining.checkpoint import check_complete
from shortened_llm.retraining.manifest import DamagedCheckpointError
from tests.ray.conftest import ROOT

TIMEOUT = 300
STEPS = 80
CHECKPOINT_STEPS = 20
TOKENS_PER_STEP = 8 * 128
PROGRESS = re.compile(
    r"trial (\d+)/\d+ .*?: (?:(loading the model)|resuming from a checkpoint at step (\d+)|step (\d+))"
)


def drill_values(tiny_values: dict) -> dict:
    """Two trials of 80 steps in one worker, a checkpoint every 20 steps."""
    retraining = tiny_values["retraining"] | {
        "tokens": STEPS * TOKENS_PER_STEP,
        "checkpoint_tokens": CHECKPOINT_STEPS * TOKENS_PER_STEP,
    }
    return tiny_values | {
        "retraining": retraining,
        "pruning": tiny_values["pruning"] | {"criteria": ["magnitude"]},
        "search": {"ratios": [0.25, 0.5]},
        "resources": {"workers": 1, "cpus_per_worker": 1, "cpus_per_evaluator": 0.5},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """The search without any fault."""

    experiment: Experiment
    begun: Path
    """A copy of its storage, taken when the first trial was done."""


@dataclass(kw_only=True)
class Search:
    """The command of one configuration; it may be started several times."""

    directory: Path
    values: dict
    environment: dict[str, str]
    process: subprocess.Popen | None = None
    starts: int = field(default=0)

    @property
    def log(self) -> Path:
        """Of the last start."""
        return self._log(self.starts)

    def _log(self, start: int) -> Path:
        return self.directory / f"{self.values['experiment']}-{start}.log"

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def storage(self) -> Path:
        return Path(self.values["storage"]["url"])

    def begin_with(self, undisturbed: Undisturbed, *, trial: bool = True) -> "Search":
        """Take over what the undisturbed search had done by the end of its first trial, or all of it but the trial."""
        shutil.copytree(undisturbed.begun, self.storage)
        for kind in () if trial else ("trials", "retrained"):
            shutil.rmtree(self.storage / kind)
        return self

    def start(self) -> "Search":
        config = self.directory / f"{self.values['experiment']}.yaml"
        config.write_text(yaml.safe_dump(self.values))
        self.starts += 1
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.search_command", str(config)],
                cwd=ROOT, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, f"the search ended before {what}:\n{self.said}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.said}"
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL the driver, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self, code: int = 0) -> None:
        """Wait for the end, which must have this exit code."""
        assert self.wait() == code, self.said

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end within {TIMEOUT} s:\n{self.said}") from None
        return code

    def reached(self) -> int:
        """The step that the log of the last start shows last; 0 before the first."""
        steps = re.findall(rf": step (\d+)/{STEPS}, ", self.said)
        return int(steps[-1]) if steps else 0

    def resumed_at(self) -> list[int]:
        """Steps of the checkpoints that training went on from, of the last start."""
        return [int(step) for step in re.findall(r"resuming from a checkpoint at step (\d+)", self.said)]

    def lost_tokens(self) -> int:
        """Trained, and trained again: what the log says, over all starts and trials."""
        reached: dict[str, int] = {}
        begins_at: dict[str, int] = {}
        lost = 0
        for start in range(1, self.starts + 1):
            for trial, begins, resumed, step in re.findall(PROGRESS, self._log(start).read_text()):
                if begins or resumed:
                    begins_at[trial] = int(resumed or 0)
                else:
                    if trial in begins_at:
                        lost += max(0, reached.get(trial, 0) - begins_at.pop(trial))
                    reached[trial] = int(step)
        return lost * TOKENS_PER_STEP

    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints that Ray has listed, of the runs that are not finished."""
        runs = self.storage / "experiments" / self.values["experiment"] / "train"
        listed = "".join(path.read_text() for path in runs.glob("*/checkpoint_manager_snapshot.json"))
        found = []
        for path in runs.glob("*/checkpoint_0*"):
            if f'"{path.name}"' not in listed:
                continue
            with contextlib.suppress(DamagedCheckpointError, FileNotFoundError):  # just deleted
                check_complete(str(path))
                found.append(int(path.name.split("_")[1]))
        return sorted(found)

    def failures(self) -> list[str]:
        """Causes of the trials that failed so far."""
        records = self.storage.glob(f"experiments/{self.values['experiment']}/failures/*/record.json")
        return [json.loads(path.read_text())["record"]["cause"] for path in records]

    def done(self) -> dict[str, int]:
        """When the record of each finished trial was written, by fingerprint."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.storage.glob("trials/*/record.json")}

    def trainings(self) -> int:
        """Models that were exported, whether or not a record names them: a repeated training is one more."""
        return len(list(self.storage.glob("retrained/*/attempt-*")))

    def experiment(self) -> Experiment:
        """What the report shows."""
        report = self.storage / "experiments" / self.values["experiment"] / "report"
        assert (report / "report.html").stat().st_size > 0
        return from_json(Experiment, (report / "trials.json").read_bytes())


def scores(experiment: Experiment) -> list[tuple]:
    """All that a disturbed search must have in common with an undisturbed one, to the last digit."""
    found = []
    for trial in experiment.trials:
        assert trial.result is not None, trial.failure
        last = trial.result.runs[-1].history[-1]
        found.append((trial.spec.name, last.step, last.loss, last.validation_loss, trial.result.after, trial.after))
    return found


def check_whole(search: Search, undisturbed: Undisturbed, *, repeated: int = 0) -> None:
    """Both trials are done, none was trained more often than said, and every number is that of a quiet run."""
    experiment = search.experiment()
    assert scores(experiment) == scores(undisturbed.experiment)
    for trial in experiment.trials:
        assert trial.result is not None
        steps = [point.step for point in trial.result.runs[-1].history]
        assert steps == sorted(set(steps)), "a step is in the history twice"
    assert search.trainings() == len(experiment.trials) + repeated
    left = list(search.storage.glob(f"experiments/{search.values['experiment']}/train/*/checkpoint_*"))
    assert not left, "checkpoints of finished runs were left"
