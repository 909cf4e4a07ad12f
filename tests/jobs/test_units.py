"""What is refused of units that are removed, before anything is spent."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import prune, score, search

PARAMETERS = ["--search.of", "parameters"]


def width(**options: object) -> list[str]:
    return ["--pruning", json.dumps([{"unit": "width"} | options])]


def weight(**options: object) -> list[str]:
    return ["--pruning", json.dumps([{"unit": "weight"} | options])]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (width(), ["search.of is 'blocks'", "width", "give parameters"]),
        (
            ["--pruning", json.dumps([{"unit": "block"}, {"unit": "sublayer"}])],
            ["search.of is 'blocks'", "block, sublayer", "set search.of to parameters"],
        ),
        ([*width(criteria=["ppl"]), *PARAMETERS], ["pruning.criteria.0", "'ppl'", "'flap'", "'optimal_brain'"]),
        ([*width(parts="heads"), *PARAMETERS], ["pruning.parts", "'heads'", "'mlp'"]),
        ([*width(round_to=352), *PARAMETERS], ["pruning.round_to: is 352", "352 channels"]),
        ([*width(), *PARAMETERS, "--search.ratios", "[0.0001]"], ["search.ratios: 0.0001", "removes none", "larger"]),
        ([*width(), *PARAMETERS, "--search.ratios", "[0.97]"], ["search.ratios: 0.97", "some must stay", "smaller"]),
        ([*width(protect_first=5, protect_last=3), *PARAMETERS], ["pruning.protect_first 5", "protect all 8 blocks"]),
        ([*width(allocation="global"), "--search.of", "bytes"], ["search.of is 'bytes'", "padded", "parameters"]),
        (
            [*width(allocation="global"), *PARAMETERS, "--retraining.methods", "[lora]"],
            ["pruning.allocation 'global'", "adapters would fill", "allocation: uniform"],
        ),
        (
            [*width(protect_first=1), *PARAMETERS, "--retraining.methods", "[cpt_lora]"],
            ["protect_first", "adapters would fill"],
        ),
        ([*width(), *PARAMETERS, "--search.rounds", "[2]"], ["search.rounds", "go at once"]),
        ([*width(refit={"damping": [0]}), *PARAMETERS], ["pruning.refit.damping.0", "0", "greater than 0"]),
        ([*width(refit={"held_out": 1}), *PARAMETERS], ["pruning.refit.held_out", "1", "less than 1"]),
        (
            [*width(criteria=["magnitude"], refit={}), *PARAMETERS, "--calibration.num_sequences", "1"],
            ["calibration.num_sequences is 1", "refit", "at least 2"],
        ),
        ([*width(taylor={"importance": "mixed"}), *PARAMETERS], ["options of taylor", "add 'taylor' or drop them"]),
        (weight(criteria=["ppl"]), ["pruning.criteria.0", "'ppl'", "'wanda'", "'sparsegpt'"]),
        (weight(pattern="4:4"), ["pruning.pattern", "'4:4'", "N less than M"]),
        (weight(pattern="3:7"), ["pruning.pattern: is 3:7", "128 inputs"]),
        (weight(pattern="2:4", allocation="alpha"), ["allocation is 'alpha'", "2:4", "pattern: unstructured"]),
        (weight(allocation="alpha", alpha={"epsilon": 1}), ["pruning.alpha.epsilon", "less than 1"]),
        (weight(alpha={"epsilon": 0.1}), ["options of alpha", "allocation: alpha"]),
        (weight(allocation="owl", pattern="2:4"), ["allocation is 'owl'", "2:4", "allocation: uniform"]),
        (weight(allocation="best"), ["pruning.allocation", "'best'", "'uniform', 'alpha', 'owl'"]),
        (weight(refine="better"), ["pruning.refine", "'better'", "'none', 'dsnot', 'barber'"]),
        (weight(dsnot={"cycles": 3}), ["options of dsnot", "refine is 'none'", "refine: dsnot"]),
        (weight(refine="dsnot", dsnot={"cycles": 0}), ["pruning.dsnot.cycles", "greater than or equal to 1"]),
        (
            weight(refine="barber", pattern="2:4", barber={"granularity": "block"}),
            ["barber.granularity is 'block'", "2:4", "granularity: row"],
        ),
        (
            weight(criteria=["mrp"], mrp={"mask": "joint"}),
            ["mrp.mask is 'joint'", "pattern is unstructured", "mask: single"],
        ),
        (
            weight(criteria=["mrp"], mrp={"mask": "joint"}, pattern="8:16"),
            ["mrp.mask is 'joint'", "8:16 has 12,870", "smaller groups"],
        ),
        (weight(pattern="02:4"), ["pruning.pattern", "'02:4'"]),
        ([*weight(), "--search.ratios", "[1e-12]"], ["search.ratios: 1e-12 removes none", "a larger one"]),
        ([*weight(), *PARAMETERS], ["search.of is 'parameters'", "stay in the files", "nonzero"]),
        ([*weight(), "--search.of", "nonzero", "--search.ratios", "[0.99]"], ["search.ratios: 0.99", "linear layers"]),
        (
            [*weight(pattern="2:4"), "--search.of", "nonzero", "--search.ratios", "[0.2]"],
            ["search.ratios: pruning.pattern 2:4 makes 0.", "asked are 0.2", "give 0."],
        ),
        ([*weight(), "--search.rounds", "[2]"], ["search.rounds", "go at once"]),
        ([*weight(), "--search.controls", "[random]"], ["no controls random", "[dense]"]),
        (
            ["--pruning", json.dumps([{"unit": "block"}, {"unit": "weight"}])],
            ["search.of is 'blocks'", "block, weight", "set search.of to nonzero"],
        ),
    ],
)
@pytest.mark.parametrize("job", [search, prune], ids=["search", "prune"])
def test_it_is_named_and_nothing_is_written(command, job, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    own = ["--output", str(tmp_path / "out")] if job is prune else []
    if job is prune and "--retraining.methods" in flags:
        pytest.skip("nothing is retrained")
    before = set(tmp_path.rglob("*"))
    code, out, err = command(job.main, *flags, *own)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "config.yaml"}


def test_single_weights_have_no_scores(command) -> None:
    code, _, err = command(score.main, *weight())
    assert code == 2
    assert "pruning.unit: is 'weight'" in err
    assert "jobs.prune writes the models" in err


def test_models_with_zeros_are_written(command, tmp_path: Path) -> None:
    """A pattern says by itself what goes, whatever the ratios are."""
    out = tmp_path / "out"
    flags = weight(criteria=["sparsegpt", "magnitude"], pattern="2:4")
    code, said, err = command(prune.main, *flags, "--output", str(out))
    assert code == 0, err
    assert [Path(line).name for line in said.splitlines()] == ["sparsegpt-weights-50", "magnitude-weights-50"]
    for directory in out.iterdir():
        tensors = load_file(directory / "model.safetensors")
        for name, tensor in tensors.items():
            if name.endswith("_proj.weight"):
                assert ((tensor != 0).reshape(-1, 4).sum(dim=1) == 2).all(), name
        card = (directory / "README.md").read_text()
        assert "50 % of the blocks' weights zero (2:4, " in card
        assert "No engine in common use is" in card
        assert json.loads((directory / "pruning.json").read_text())["origin"][0]["payload"] is None


def test_text_is_read_where_weights_are_computed_from_it(command) -> None:
    """Magnitude alone needs none; refit does."""
    missing = ["--calibration.path", "/no/such/text.jsonl", *PARAMETERS, "--dry-run"]
    assert command(score.main, *width(criteria=["magnitude"]), *missing)[0] == 0
    for compensated in ({"refit": {}}, {"bias": True}):
        code, _, err = command(score.main, *width(criteria=["magnitude"], **compensated), *missing)
        assert code == 2
        assert "calibration.path" in err


@pytest.mark.parametrize(
    "entry",
    [
        {"criteria": ["mrp"], "pattern": "2:4", "mrp": {"mask": "joint"}, "refine": "dsnot"},
        {"criteria": ["mrp"], "pattern": "1:3", "mrp": {"mask": "joint", "update": "single"}},
        {"criteria": ["wanda", "sparsegpt"], "allocation": "alpha", "alpha": {"estimator": "peak"}, "refine": "barber"},
        {"criteria": ["magnitude"], "allocation": "owl", "refit": {}},
    ],
    ids=str,
)
def test_every_step_is_tried_on_a_toy(entry: dict, command) -> None:
    """A dry run prunes a small model of the class; its inputs may make no whole groups of the pattern."""
    code, _, err = command(search.main, *weight(**entry), "--search.controls", "[dense]", "--dry-run")
    refused = entry.get("pattern") == "1:3"
    assert (code, "128 inputs" in err) == ((2, True) if refused else (0, False)), err
