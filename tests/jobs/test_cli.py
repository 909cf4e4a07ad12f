"""Bad input: exit code 2, one clear message, nothing written. Flags win over the file."""

import copy
import json
import re
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from jobs import prune, retrain, score, search
from jobs.cli import make_parser, output_directory, parse_command, run
from jobs.config_file import read_config_file
from shortened_llm.criteria import CRITERIA
from shortened_llm.errors import BadInputError
from shortened_llm.records import UnitScores, from_json

ROOT = Path(__file__).parents[2]


MISSING = "/no/such/place"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--search.ratios", "[1.5]"], ["search.ratios.0", "1.5", "less than 1"]),
        (["--search.ratios", "[0.05]"], ["search.ratios: 0.05", "removes 0 of 8"]),
        (["--search.ratios", "[0.9]"], ["search.ratios: 0.9", "removes 7 of 8"]),
        (["--search.removed_blocks", "[8]"], ["search.removed_blocks: 8"]),
        (
            ["--search.constraints.max_bytes", "1000"],
            ["search.constraints.max_bytes: is 1,000", "without 2 blocks", "larger search.ratios"],
        ),
        (["--model.path", MISSING], ["model.path", MISSING, "does not exist"]),
        (["--model.path", "someone/no-such-model"], ["model.path", "someone/no-such-model", "hub"]),
        (["--calibration.path", MISSING + ".jsonl"], ["calibration.path", MISSING]),
        (
            ["--calibration", json.dumps([{"path": MISSING + ".jsonl", "seed": seed} for seed in (1, 2)])],
            ["calibration.0.path", "calibration.1.path", MISSING],
        ),
        (["--calibration.sequence_length", "100000"], ["calibration", "100000"]),
        (["--calibration.num_sequences", "100000"], ["calibration.num_sequences", "100000"]),
        (["--retraining.data", json.dumps([{"path": MISSING + ".jsonl"}])], ["retraining.data.0.path", MISSING]),
        (["--retraining.tokens", "100"], ["retraining", "tokens is 100", "1,024"]),
        (["--pruning.criteria", '["pppl"]'], ["pruning.criteria.0", "pppl", "'ppl', 'taylor', 'magnitude'"]),
        (["--pruning.random.seed", "3"], ["pruning", "options of random", "['ppl', 'magnitude']"]),
        (["--pruning.magnitude.power", "3"], ["pruning.magnitude.power", "3", "1 or 2"]),
        (["--calibration.sequence_length", "1"], ["calibration.sequence_length", "1", "greater than or equal to 2"]),
        (["--calibration.bos", "each"], ["calibration.bos", "each"]),
        (
            ["--pruning", '[{"criteria": ["ppl"]}, {"criteria": ["kl"], "protect_first": 8}]'],
            ["pruning.1.protect_first 8"],
        ),
        (["--calibration.draws", "2"], ["--calibration.draws is no flag"]),
        (["--scoring.criteria", '["ppl"]'], ["--scoring.criteria is no flag; did you mean --pruning.criteria?"]),
        (["--evaluation.report.tasks", '["piqaa"]'], ["evaluation.report.tasks", "piqaa", "piqa"]),
        (["--experiment", "a/b"], ["experiment", "a/b"]),
        (["--experiment", ""], ["experiment"]),
        (["--resources.workers", "8"], ["resources.workers", "8 workers", "CPU"]),
        (["--resources.gpus_per_worker", "1"], ["resources.workers", "GPU", "can hold 0"]),
        (["--pruning.protect_first", "8"], ["pruning.protect_first", "all 8 blocks"]),
        (["--storage.url", "/dev/null/results"], ["storage.url", "/dev/null/results"]),
        (["--storage.url", "nosuch://bucket"], ["nosuch"]),
        (
            ["--storage.url", "ftp://127.0.0.1:1/x"],
            ["storage.url: URL 'ftp://127.0.0.1:1/x' cannot be read", "refused"],
        ),
        (["--search", "{"], ["--search: is no JSON", "--search.FIELD"]),
        (
            ["--retraining.cpt.warmup_steps", "8"],
            ["retraining.cpt.warmup_steps: is 8", "has 8 optimiser steps", "at most 7"],
        ),
        (
            ["--retraining.methods", '["cpt_lora"]', "--retraining.lora.warmup_steps", "4"],
            ["retraining.lora.warmup_steps: is 4", "has 4 optimiser steps"],
        ),
        (
            ["--retraining.methods", '["lora"]', "--retraining.lora.target_modules", '["qproj"]'],
            ["retraining.lora.target_modules", "'qproj'", "down_proj, gate_proj, k_proj"],
        ),
        (["--storage.url", "s3://key:secret@bucket"], ["storage.url", "credentials"]),
        (
            ["--search.budget.accelerator_hours", "1e-9", "--resources.accelerator_flops", "1e12"],
            ["search.budget: allows 1e-09 accelerator-hours, but the cheapest trial takes about"],
        ),
        (
            ["--search.budget.hours", "1e-9", "--resources.accelerator_flops", "1e12"],
            ["search.budget.hours: is 1e-09, but the cheapest trial trains for about"],
        ),
    ],
)
def test_bad_input_is_named_and_writes_nothing(command, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(search.main, *flags, "--dry-run")
    assert code == 2
    assert out == ""
    message = "\n".join(line for line in err.splitlines() if line.startswith("error: "))
    assert "Traceback" not in err
    for word in words:
        assert word in message
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "config.yaml"] == before


@pytest.mark.parametrize(("content", "word"), [(None, "cannot read"), ("a: [", "not YAML"), ("just text", "sections")])
def test_a_bad_file_is_named(
    content: str | None, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)
    monkeypatch.setattr(sys, "argv", ["job", str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit) as leaving:
        run(search.main)
    assert leaving.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "search:\n"])
def test_a_key_given_twice_is_named_with_its_lines(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """YAML parsers keep the last without a word."""
    indent = "  " if below else ""
    config = tmp_path / "config.yaml"
    config.write_text(f"{below}{indent}ratios: [0.2]\n{indent}other: 1\n{indent}ratios: [0.4]\n")
    monkeypatch.setattr(sys, "argv", ["job", str(config)])
    with pytest.raises(SystemExit, match="2"):
        run(search.main)
    first = 2 if below else 1
    assert f"error: config: 'ratios' is given twice, in lines {first} and {first + 2}" in capsys.readouterr().err


def test_whole_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("pattern: 2:4\ntokens: 020\nseed: -1_000\nrank: 0x10\nzero: 0\n")
    assert read_config_file(config) == {"pattern": "2:4", "tokens": "020", "seed": -1000, "rank": 16, "zero": 0}


@pytest.mark.parametrize("content", [b"tokens: 2020-13-45", b"path: \xff", b"a: [", b"\ttokens: 1"])
def test_a_file_that_is_no_yaml_is_named(content: bytes, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(content)
    with pytest.raises(BadInputError, match=r"config\.yaml' is not YAML"):
        read_config_file(config)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "is empty"),
        ("a\0b", "has a character that no path has"),
        ("x" * 300, "has a name of more than 255 bytes"),
        ("/dev/null/below", "/dev/null is a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(output: str, words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        output_directory(output)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--serch.ratios", ["--serch.ratios is no flag", "did you mean --search.ratios?"]),
        ("--retraining.tokns=8k", ["--retraining.tokns is no flag", "did you mean --retraining.tokens?"]),
        ("--dry", ["--dry is no flag", "--dry-run"]),
        ("--quux", ["--quux is no flag"]),
    ],
)
def test_a_misspelt_flag_is_one_line(command, tmp_path: Path, flag: str, words: list[str]) -> None:
    code, out, err = command(search.main, flag, *([] if "=" in flag or flag == "--dry" else ["[0.25]"]))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    for word in words:
        assert word in err


@pytest.mark.parametrize("broken", ["no tokenizer", "no config", "not causal", "empty corpus", "short corpus"])
def test_broken_files_are_named(broken: str, command, tmp_path: Path, tiny_values: dict) -> None:
    values = copy.deepcopy(tiny_values)
    source = Path(values["model"]["path"])
    model = tmp_path / "model"
    model.mkdir()
    for path in source.iterdir():
        if not (broken == "no tokenizer" and "tokenizer" in path.name) and not (
            broken == "no config" and path.name == "config.json"
        ):
            (model / path.name).symlink_to(path)
    if broken == "not causal":
        (model / "config.json").unlink()
        (model / "config.json").write_text('{"model_type": "t5"}')
    values["model"]["path"] = str(model)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("" if broken == "empty corpus" else '{"text": "short"}\n')
    if "corpus" in broken:
        values["retraining"]["data"] = {"path": str(corpus)}
    code, _, err = command(search.main, "--dry-run", values=values)
    expected = {
        "no tokenizer": "tokenizer",
        "no config": "config.json",
        "not causal": "t5",
        "empty corpus": "retraining.data.0.path",
        "short corpus": "fewer than one sequence of retraining.sequence_length 128",
    }[broken]
    assert (code, expected in err) == (2, True), err


def test_a_dry_run_says_what_would_run_and_writes_nothing(command, tmp_path: Path) -> None:
    code, out, _ = command(search.main, "--dry-run")
    assert code == 0
    for word in ("at most 2", "8,192 tokens", "2 (25 %) of 8 blocks", "stories (train part)", "news (all documents)"):
        assert word in out
    assert not (tmp_path / "results").exists()


def test_a_cost_that_is_not_known_is_not_invented(command) -> None:
    code, out, _ = command(search.main, "--dry-run", "--search.budget.hours", "1")
    assert code == 0
    assert "speed not known before the first trial has ended; give resources.accelerator_flops" in out
    assert "about" not in next(line for line in out.splitlines() if line.startswith("cost"))
    code, out, _ = command(search.main, "--dry-run", "--resources.accelerator_flops", "1e11")
    assert code == 0
    assert re.search(r"cost +about [\d.]+ accelerator-hours, [\d.]+ hours of training", out)


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip


def _number(digits: str) -> float:
    return float(digits.replace(",", ""))


def test_what_a_search_of_7b_costs_is_told_before_its_files_are_there(command, tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "jobs/configs/llama2_7b.yaml").read_text())
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    flags = ["--model.path", str(model), "--storage.url", str(tmp_path / "results")]
    code, out, err = command(search.main, *flags, "--dry-run", values=values)
    assert code == 0, err
    assert "rungs       12 at 10 %" in out
    # 6 x about 5 B weights and the attention's, for 3.6 B tokens, at 40 % of 3.12e14 FLOP/s.
    hours = float(re.search(r"cost +about ([\d.]+) accelerator-hours", out)[1])  # type: ignore[index]
    assert pytest.approx(hours, rel=0.15) == 6 * 5e9 * 3.6e9 / (0.4 * 3.12e14) / 3600
    assert re.search(r"they cost [\d,]+ at 2 an hour", out)
    stay, at_a_time, only, free = re.search(  # type: ignore[union-attr]
        r"storage +([\d,.]+) GiB .* ([\d,.]+) GiB of checkpoints at a time; (only )?([\d,.]+) GiB are free", out
    ).groups()
    assert bool(only) == (_number(free) < _number(stay) + _number(at_a_time))
    assert _number(free) == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, abs=5)
    for process in ("worker", "evaluator", "scoring task"):
        assert re.search(rf"GPU memory +about [\d.]+ GiB at the peak of each {process}.*of 80.0 GiB", out)
    unchecked = [line for line in out.splitlines() if line.startswith("unchecked")]
    for word in ("the weights and the tokenizer", "toy of the model", "retraining.data.0.path", "calibration.path"):
        assert any(word in line for line in unchecked)
    assert not (tmp_path / "results").exists()

    code, _, err = command(search.main, *flags, "--dry-run", "--resources.accelerator_memory_gib", "8", values=values)
    assert (code, "resources.workers: 8 hold 10.3 GiB" in err) == (2, True)
    assert "resources.gpus_per_evaluator: 1 would hold 12.6 GiB" in err
    assert "more than the 8 GiB of a GPU; give at least 2" in err
    code, _, err = command(search.main, *flags, "--search.ratios", "[0.99]", "--dry-run", values=values)
    assert (code, "search.ratios: 0.99" in err) == (2, True)
    code, out, err = command(search.main, *flags, values=values)
    assert (code, out, "model.path" in err) == (2, "", True)


def test_many_passes_over_a_corpus_are_told_before_anything_runs(command, tmp_path: Path) -> None:
    """580 of them passed without a word."""
    small = tmp_path / "small.jsonl"
    small.write_text(
        "".join(json.dumps({"text": f"the story of number {i}, told once more"}) + "\n" for i in range(400))
    )
    told = []
    for tokens in ("8k", "10M"):
        flags = ["--retraining.data", json.dumps([{"path": str(small)}]), "--retraining.tokens", tokens]
        code, _, err = command(search.main, "--dry-run", *flags)
        assert code == 0, err
        told.append(err)
    assert "passes it" not in told[0]
    assert re.search(r"The corpus holds at most [\d,]+ tokens: a budget of 10,000,000 passes it [\d,]+ times", told[1])


def test_another_configuration_under_the_same_name_is_refused(command, tmp_path: Path, tiny_config) -> None:
    from shortened_llm.search.stored.experiment import write_config
    from shortened_llm.storage.store import Store

    write_config(Store.at(tiny_config.storage.url), tiny_config)
    assert command(search.main, "--dry-run")[0] == 0
    assert command(search.main, "--dry-run", "--resources.evaluators", "2")[0] == 0
    code, _, err = command(search.main, "--dry-run", "--retraining.tokens", "9216")
    assert code == 2
    for word in ("retraining.tokens was 8192, is 9216", "--experiment test-2"):
        assert word in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_is_stopped_says_so(number: int, code: int) -> None:
    program = """
import time
from jobs.cli import run

def main(arguments):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("left", flush=True)

run(main)
"""
    stopped = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert stopped.stdout is not None
    assert stopped.stdout.readline() == "begun\n"
    stopped.send_signal(number)
    out, err = stopped.communicate(timeout=30)
    assert (stopped.returncode, out, err) == (code, "left\n", "stopped; the same command goes on from here\n")


def test_flags_win_over_the_file(tmp_path: Path, tiny_values: dict) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values))
    flags = ["--search.ratios", "[0.5]", "--retraining.cpt.learning_rate", "[1e-4, 3e-4]", "--experiment", "other"]
    parsed, _ = parse_command(make_parser("search", ""), [str(config), *flags])
    assert parsed.search.ratios == (0.5,)
    assert parsed.retraining.cpt.learning_rate == (1e-4, 3e-4)
    assert parsed.retraining.cpt.warmup_ratio == 0.1
    assert parsed.experiment == "other"


def test_a_flag_may_give_a_range(tmp_path: Path, tiny_values: dict) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values))
    flags = ["--search.sampler", "optuna", "--search.trials", "8", "--search.ratios", '{"low": 0.3, "high": 0.4}']
    parsed, _ = parse_command(make_parser("search", ""), [str(config), *flags])
    assert {field: str(axis) for field, axis in parsed.ranges.items()} == {"search.ratios": "0.3 to 0.4"}


def test_of_several_files_the_later_wins_and_flags_over_both(tmp_path: Path, tiny_values: dict) -> None:
    """Experiment and machines may be two files."""
    machines = {"resources": {"workers": 4}, "storage": {"url": str(tmp_path / "elsewhere")}}
    for name, values in (("experiment", tiny_values), ("machines", machines)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    files = [str(tmp_path / "experiment.yaml"), str(tmp_path / "machines.yaml")]
    config, _ = parse_command(make_parser("search", ""), [*files, "--resources.cpus_per_worker", "0.25"])
    assert (config.resources.max_workers, config.resources.cpus_per_worker) == (4, 0.25)
    assert config.storage.url == str(tmp_path / "elsewhere")
    assert config.experiment == tiny_values["experiment"]


def test_flags_set_the_options_of_a_criterion(tmp_path: Path, tiny_values: dict) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values))
    flags = ["--pruning.criteria", '["taylor", "random"]', "--pruning.taylor.power", "2", "--pruning.random.seed", "3"]
    parsed, _ = parse_command(make_parser("score", ""), [str(config), *flags])
    (entry,) = parsed.prunings
    assert (entry.criteria, entry.protect_first) == (("taylor", "random"), 1)
    assert entry.options("taylor").model_dump() == {"power": 2, "output_reduction": "sum", "block_reduction": "sum"}
    assert entry.options("random").model_dump() == {"seed": 3}


def test_a_flag_for_one_of_several_entries_is_refused(tmp_path: Path, tiny_values: dict) -> None:
    """Which of them it is for, it does not say."""
    config = tmp_path / "config.yaml"
    entries = [{"criteria": ["ppl"]}, {"criteria": ["kl"]}]
    config.write_text(yaml.safe_dump(tiny_values | {"pruning": entries}))
    with pytest.raises(
        BadInputError, match=r"--pruning\.criteria: the file gives a list of pruning entries; give the whole"
    ):
        parse_command(make_parser("score", ""), [str(config), "--pruning.criteria", '["taylor"]'])
    parsed, _ = parse_command(make_parser("score", ""), [str(config), "--pruning", '[{"criteria": ["taylor"]}]'])
    assert [entry.criteria for entry in parsed.prunings] == [("taylor",)]


def test_help_documents_every_field(command) -> None:
    code, out, _ = command(search.main, "--help")
    assert code == 0
    for word in (
        "--retraining.cpt.learning_rate",
        "Peak learning rate",
        "(tokens)",
        "default: 512",
        "--dry-run",
        *CRITERIA,
        "2402.02834",
    ):
        assert word in out


def test_score_prints_and_writes_json(command, tmp_path: Path) -> None:
    code, out, err = command(score.main, "--output", str(tmp_path / "out"))
    assert code == 0
    printed = [from_json(UnitScores, line) for line in out.splitlines()]
    assert [scores.criterion for scores in printed] == ["ppl", "magnitude"]
    for scores in printed:
        assert from_json(UnitScores, (tmp_path / "out" / f"{scores.criterion}.json").read_text()) == scores
        assert scores.protected == (0, 7)
    assert "dense perplexity" in err


def test_score_numbers_several_rankings_by_a_criterion(command, tmp_path: Path, tiny_values: dict) -> None:
    text = tiny_values["calibration"]
    values = tiny_values | {"calibration": [text, {**text, "seed": 5}]}
    code, _, err = command(score.main, "--output", str(tmp_path / "out"), values=values)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == [
        "magnitude.json",
        "ppl-1.json",
        "ppl-2.json",
    ]
    found = [from_json(UnitScores, (tmp_path / "out" / f"ppl-{number}.json").read_text()) for number in (1, 2)]
    assert [scores.calibration for scores in found] == ["seed 1234", "seed 5"]
    assert "ppl (seed 5): " in err


def test_prune_writes_models_that_load(command, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    code, out, _ = command(prune.main, "--output", str(tmp_path / "out"), "--search.ratios", "[0.5]")
    assert code == 0
    for line in out.splitlines():
        assert AutoModelForCausalLM.from_pretrained(line).config.num_hidden_layers == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prune_removes_the_blocks_that_are_named(command, tmp_path: Path, dtype: str) -> None:
    """And writes weights of the type that is asked for, whatever it computes in."""
    flags = ["--output", str(tmp_path / "out"), "--remove", "3,5", "--model.export_dtype", dtype]
    code, out, err = command(prune.main, *flags)
    assert code == 0
    assert f"writing weights in {dtype}" in err
    (directory,) = (Path(line) for line in out.splitlines())
    assert directory == tmp_path / "out" / "without-3-5"
    facts = json.loads((directory / "pruning.json").read_text())
    assert (facts["removed_blocks"], facts["labels"][0]["criterion"], facts["dtype"]) == ([3, 5], "chosen", dtype)
    tensors = load_file(directory / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}


def test_retrain_says_what_it_would_train(command, tmp_path: Path) -> None:
    code, out, _ = command(retrain.main, "--dry-run", "--remove", "3,5", "--retraining.methods", '["lora"]')
    assert code == 0
    assert "without blocks 3,5 by lora" in out
    code, out, _ = command(retrain.main, "--dry-run")
    assert code == 0
    assert "without what ppl removes by cpt" in out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("blocks", ["9", "a,b", "", "0,1,2,3,4,5,6,7", "-1"])
def test_blocks_that_cannot_go_are_named(command, blocks: str) -> None:
    code, _, err = command(retrain.main, "--dry-run", f"--remove={blocks}")
    assert code == 2
    assert f"--remove: is {blocks!r}; allowed are" in err or f"--remove: {blocks!r} is no list" in err
