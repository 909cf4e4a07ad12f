"""Commands ask only for the sections that they use."""

from pathlib import Path

import pytest
import yaml

from jobs import evaluate, prune, retrain, score, search, submit
from jobs.cli import run
from shortened_llm.records import UnitScores, from_json

SECTIONS = ("search", "retraining", "evaluation")
MAINS = {"search": search, "evaluate": evaluate, "retrain": retrain, "prune": prune, "submit": submit, "score": score}


def without(values: dict, *sections: str) -> dict:
    return {name: value for name, value in values.items() if name not in sections}


def files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.name != "config.yaml"]


def test_scoring_needs_neither_training_data_nor_evaluation(command, tiny_values: dict) -> None:
    """A text that serves no other purpose is then read whole."""
    values = {name: tiny_values[name] for name in ("experiment", "storage", "model", "calibration", "pruning")}
    values["calibration"] |= {"path": tiny_values["evaluation"]["report"]["perplexity"][0]["path"]}
    code, out, err = command(score.main, "--dry-run", values=values)
    assert (code, out) == (0, "would score 8 blocks by ppl, magnitude\n"), err
    code, out, err = command(score.main, values=values)
    assert code == 0, err
    alone = [from_json(UnitScores, line) for line in out.splitlines()]
    assert [(scores.criterion, len(scores.order)) for scores in alone] == [("ppl", 8), ("magnitude", 8)]
    assert "(all documents)" in alone[0].protocol


def test_pruning_needs_neither_training_data_nor_evaluation(command, tmp_path: Path, tiny_values: dict) -> None:
    values = without(tiny_values, "retraining", "evaluation", "resources")
    values["pruning"] = {"criteria": ["magnitude"]}
    code, out, err = command(prune.main, "--output", str(tmp_path / "out"), values=values)
    assert code == 0, err
    (directory,) = (Path(line) for line in out.splitlines())
    assert (directory / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("verb", "absent", "needed", "flags"),
    [
        ("search", SECTIONS, ("search", "evaluation"), []),
        ("search", ("evaluation",), ("evaluation",), ["--dry-run"]),
        ("submit", ("evaluation",), ("evaluation",), ["--address", "http://127.0.0.1:9"]),
        ("evaluate", SECTIONS, ("evaluation",), []),
        ("retrain", SECTIONS, ("search", "retraining"), ["--remove", "3"]),
        ("retrain", ("retraining",), ("retraining",), ["--dry-run"]),
        ("prune", SECTIONS, ("search",), ["--output", "out"]),
        ("score", SECTIONS, ("search",), ["--pruning.criteria", '["greedy_ppl"]']),
    ],
)
def test_a_section_that_is_needed_is_named_and_nothing_is_written(
    verb: str,
    absent: tuple[str, ...],
    needed: tuple[str, ...],
    flags: list[str],
    command,
    tmp_path: Path,
    tiny_values: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    main = MAINS[verb].main
    code, out, err = command(main, *flags, values=without(tiny_values, *absent))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["error", name] for name in needed], err
    assert all(f"jobs.{verb} needs this section; give one such as {{" in line for line in lines)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("verb", "absent", "flags", "words"),
    [
        ("search", ("retraining",), [], ["training    none: nothing is trained", "trains on   nothing\n"]),
        ("evaluate", ("search", "retraining"), [], ["would score"]),
        ("retrain", ("evaluation",), ["--remove", "3,5"], ["without blocks 3,5 by cpt"]),
    ],
)
def test_a_dry_run_goes_without_what_is_not_used(
    verb: str, absent: tuple[str, ...], flags: list[str], words: list[str], command, tmp_path: Path, tiny_values: dict
) -> None:
    code, out, err = command(MAINS[verb].main, "--dry-run", *flags, values=without(tiny_values, *absent))
    assert code == 0, err
    for word in words:
        assert word in out
    assert not (tmp_path / "results").exists()


def test_a_flag_alone_begins_a_section(
    tmp_path: Path, tiny_values: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It is then checked as if the file had it."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(without(tiny_values, "retraining")))
    arguments = [str(tmp_path / "config.yaml"), "--dry-run", "--retraining.tokens", "8k"]
    monkeypatch.setattr("sys.argv", ["job", *arguments])
    with pytest.raises(SystemExit, match="2"):
        run(retrain.main)
    assert "error: retraining: cpt trains on text, but data is not given" in capsys.readouterr().err
