"""A new criterion is one file and one row: here the file is a string, and nothing else is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shortened_llm.config import parse_config
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.sources import text_roles
from shortened_llm.models.directory import load_tokenizer
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef
from tests.scoring.test_criteria import hidden_states

ROOT = Path(__file__).parents[2]
FILE = '''
"""Relative change: how far a block moves its input."""

import numpy as np
from pydantic import Field

from shortened_llm.criteria.criterion import BlockStatistic, Criterion, CriterionOptions, mean_scores


class RelativeChangeOptions(CriterionOptions):
    """(mean over tokens of |output - input| / |input|)^exponent."""

    exponent: float = Field(1.0, gt=0)
    """Applied to the mean of each sequence."""


def relative_change(before, after):
    return ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean(dim=1)


CRITERION = Criterion(
    options=RelativeChangeOptions,
    measured=BlockStatistic(name="relative_change", function=relative_change),
    reads_text=True,
    reduce=lambda measured: mean_scores(measured.values**measured.options.exponent),
)
'''
PROGRAM = """
import relative_change
from shortened_llm.criteria import CRITERIA
CRITERIA["relative_change"] = relative_change.CRITERION

from jobs.cli import run
from jobs.score import main
run(main)
"""


@pytest.fixture
def score(tmp_path: Path, tiny_values: dict):
    """Run `jobs.score` with the new criterion in its table."""
    (tmp_path / "relative_change.py").write_text(FILE)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_values))

    def call(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "config.yaml"), *flags]
        place = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | place)

    return call


def test_a_new_criterion_is_one_file_and_one_row(score, tmp_path: Path, tiny_model: ModelRef, tiny_values) -> None:
    criteria = ["--pruning.criteria", '["ppl", "relative_change"]', "--pruning.relative_change.exponent", "2"]
    done = score(*criteria, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "relative_change.json").read_text())
    assert "exponent=2.0" in found["protocol"]
    assert found["protected"] == [0, 7]
    assert [sum(cut["probabilities"]) for cut in found["cuts"]] == pytest.approx([2]), "with an interval of its own"
    assert all(error > 0 for error in found["standard_errors"])
    config = parse_config(tiny_values)
    (documents,) = text_roles(config).calibration
    tokens = calibration_tokens(
        documents, config.calibrations[0], load_tokenizer(tiny_model.url), vocab_size=1_000_000, bos=False
    )
    states = hidden_states(load_model(tiny_model, "float32"), tokens)
    change = ((states[1:] - states[:-1]).norm(dim=-1) / states[:-1].norm(dim=-1)).mean(dim=2)  # [blocks, sequences]
    assert found["scores"] == pytest.approx((change**2).mean(dim=1).tolist(), rel=1e-4)


def test_it_is_documented_and_checked_like_the_others(score) -> None:
    shown = score("--help").stdout
    assert "--pruning.relative_change.exponent" in shown
    assert "|output - input| / |input|" in " ".join(shown.split())
    criteria = '["relative_change", "relative"]'
    refused = score("--pruning.criteria", criteria, "--pruning.relative_change.exponent", "-1", "--dry-run")
    assert refused.returncode == 2
    assert "pruning.relative_change.exponent: input should be greater than 0" in refused.stderr
    assert "pruning.criteria.1: should be one of 'ppl'" in refused.stderr
    assert "'relative_change' (is 'relative')" in refused.stderr
