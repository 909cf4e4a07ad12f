"""The schema: what is refused, in which words, and what counts as a change."""

import copy
import pickle
from pathlib import Path

import pytest
import yaml

from shortened_llm.config import ExperimentConfig, changed_keys, parse_config
from shortened_llm.config.metric import objective
from shortened_llm.errors import BadInputError

CONFIGS = Path(__file__).parents[1] / "jobs/configs"


@pytest.fixture
def values() -> dict:
    return yaml.safe_load((CONFIGS / "tiny.yaml").read_text())


def changed(values: dict, key: str, value: object) -> dict:
    result = copy.deepcopy(values)
    *sections, last = key.split(".")
    section = result
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return result


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTENED_LLM_ASSETS", "/shared/assets")
    assert parse_config(yaml.safe_load(path.read_text())).experiment


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("serch", {}, ["serch", "unknown key", "'search'"]),
        ("retraining.cpt.learing_rate", 1e-4, ["retraining.cpt.learing_rate", "'learning_rate'"]),
        ("calibration.num_sequence", 4, ["calibration.num_sequence", "'num_sequences'"]),
        ("search.ratios", [0.2, 1.0], ["search.ratios.1", "less than 1"]),
        ("search.ratios", [0], ["search.ratios.0", "greater than 0"]),
        ("search", {}, ["search", "ratios", "removed_blocks"]),
        ("search.budget", {}, ["search.budget", "accelerator_hours, hours, or cost and hourly_price"]),
        ("search.budget.hours", 0, ["search.budget.hours", "greater than 0"]),
        ("search.budget.accelerator_hours", -1, ["search.budget.accelerator_hours", "greater than 0"]),
        ("search.budget.cost", 100, ["search.budget", "cost is 100", "hourly_price is not given"]),
        ("resources.accelerator_flops", 0, ["resources.accelerator_flops", "greater than 0"]),
        ("pruning.criteria", ["pppl"], ["pruning.criteria.0", "'ppl'", "'taylor'", "'magnitude'"]),
        ("pruning.taylor", {"powr": 2}, ["pruning.taylor.powr", "'power'"]),
        ("pruning", [{}, {"protect_frist": 1}], ["pruning.1.protect_frist", "'protect_first'"]),
        ("pruning", [{"criteria": ["ppl"]}, {"criteria": ["ppl"]}], ["pruning.1.criteria", "'ppl'", "same settings"]),
        ("pruning.unit", "neuron", ["pruning.unit", "'block', 'sublayer', 'width', 'weight'", "'neuron'"]),
        ("pruning", {"unit": "width", "criteria": ["ppl"]}, ["pruning.criteria.0", "'flap', 'wanda_sp'"]),
        ("pruning", {"unit": "sublayer", "criteria": ["taylor"]}, ["taylor cannot rank", "ppl, block_influence, kl"]),
        ("pruning", {"unit": "width", "part": "mlp"}, ["pruning.part: unknown key", "'parts'"]),
        ("pruning", {"unit": "width", "round_to": 0}, ["pruning.round_to", "greater than or equal to 1"]),
        ("pruning", {"unit": "width", "flap": {"power": 1}}, ["pruning.flap.power: unknown key"]),
        ("calibration", [], ["calibration", "at least 1"]),
        ("calibration", [{"path": "a.txt"}, {"path": "a.txt"}], ["calibration", "listed twice"]),
        ("calibration.draws", 2, ["calibration.draws", "unknown key", "num_sequences", "seed"]),
        ("calibration.racing", True, ["calibration.racing", "unknown key"]),
        ("scoring", {"criteria": ["ppl"], "protect_first": 1}, ["scoring: unknown key; did you mean 'pruning'?"]),
        ("modl", {"path": "x", "trust_remote_code": False}, ["modl: unknown key; did you mean 'model'?"]),
        ("experiment", "", ["experiment", "letters"]),
        ("experiment", "a/b", ["experiment", "'a/b'"]),
        ("experiment", "..", ["experiment"]),
        ("retraining.tokens", 1000, ["retraining", "1,000", "1,024"]),
        ("retraining.cpt.learning_rate", [-1e-4], ["retraining.cpt.learning_rate"]),
        (
            "resources.gpus_per_evaluator",
            1.5,
            ["resources.gpus_per_evaluator", "a whole number of GPUs, or a fraction"],
        ),
        ("resources.gpus_per_worker", 2, ["resources.gpus_per_worker", "less than or equal to 1"]),
        (
            "resources",
            {"gpus_per_worker": 0.5, "workers": 2},
            ["gpus_per_worker is 0.5 with 2", "give 1, or one worker"],
        ),
        ("resources.workers", 3, ["global_batch_size", "3"]),
        ("resources.workers", [4, 2], ["resources.workers", "[fewest, most]"]),
        ("resources.workers", [0, 2], ["resources.workers.0", "greater than or equal to 1"]),
        ("resources.workers", [1, 1000], ["global_batch_size", "1000"]),
        ("resources.shard_group", 3, ["resources.shard_group is 3", "divides"]),
        ("retraining.micro_batch_size", 3, ["global_batch_size", "micro_batch_size 3"]),
        ("retraining.methods", ["cpt", "lorra"], ["retraining.methods.1", "lorra", "'cpt_lora'"]),
        ("retraining.preset", "long", ["retraining.preset", "'paper' or 'short'"]),
        ("retraining.cpt.decay_ratio", 0.95, ["cpt", "warmup_ratio 0.1", "decay_ratio 0.95"]),
        ("retraining.tokens", {0.25: 32768}, ["retraining.tokens", "[0.25]", "[0.25, 0.5]"]),
        ("retraining.lora.train_on", "corpora", ["retraining.lora.train_on.0", "corpora", "'instructions'"]),
        ("model.path", "$NO_SUCH_VARIABLE/model", ["model.path", "NO_SUCH_VARIABLE"]),
        ("model.path", "a\0b", ["model.path", "character that no path has"]),
        ("model.path", "\ud800", ["model.path", "character that no path has"]),
        ("calibration.path", "x" * 300, ["calibration.path", "more than 255 bytes"]),
        ("storage.url", "s3://", ["storage.url", "a protocol and no place"]),
        ("retraining", None, ["retraining: give its fields", "KEY: value"]),
        ("retraining.tokens", 10**400, ["retraining.tokens", "less than or equal to 1000000000000000"]),
        ("retraining.seed", 2**63, ["retraining.seed.0", "less than"]),
        ("retraining.lora.rank", 10**30, ["retraining.lora.rank.0", "less than or equal to 65536"]),
        ("retraining.cpt.learning_rate", True, ["retraining.cpt.learning_rate", "no truth value", "True"]),
        ("model.trust_remote_code", True, ["model.trust_remote_code", "False"]),
        ("resources.worker_labels", {1: 2}, ["resources.worker_labels.1:", "string"]),
        ("calibration.num_sequences", True, ["calibration.num_sequences", "no truth value"]),
        ("evaluation.efficiency", {"output_lengths": []}, ["evaluation.efficiency.output_lengths", "at least 1"]),
        ("evaluation.efficiency", {"batch_sizes": [1, 1]}, ["evaluation.efficiency.batch_sizes", "listed twice"]),
        ("evaluation.report", {"tasks": ["piqa", {"task": "piqa"}]}, ["evaluation.report.tasks", "listed twice"]),
        ("evaluation.report", {"perplexity": ["ptb", "ptb@128"]}, ["evaluation.report.perplexity", "listed twice"]),
        ("retraining.data", [{"path": "a.txt"}, {"path": "a.txt"}], ["retraining.data", "listed twice"]),
        ("search.budget", {"hours": None}, ["search.budget", "accelerator_hours, hours, or cost and hourly_price"]),
    ],
)
def test_bad_values_are_named(values: dict, key: str, value: object, words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_config(changed(values, key, value))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("32k", 32_000),
        ("1.5M", 1_500_000),
        ("2B", 2_000_000_000),
        ("2e6", 2_000_000),
        ("65_536", 65_536),
        (65536, 65536),
    ],
)
def test_tokens_may_be_written_short(values: dict, written: object, tokens: int) -> None:
    assert parse_config(changed(values, "retraining.tokens", written)).retraining.tokens == tokens
    by_ratio = parse_config(changed(values, "retraining.tokens", {"0.25": written, "0.5": "64k"}))
    assert by_ratio.retraining.tokens == {0.25: tokens, 0.5: 64_000}


@pytest.mark.parametrize("written", ["2G", "1.5", "many", "-8k", "8 k k", "1.0005k"])
def test_other_tokens_are_answered(values: dict, written: str) -> None:
    with pytest.raises(BadInputError, match=r"retraining\.tokens.*k, M and B"):
        parse_config(changed(values, "retraining.tokens", written))


def test_workers_are_a_number_or_a_range(values: dict) -> None:
    fixed = parse_config(changed(values, "resources.workers", 4)).resources
    assert (fixed.min_workers, fixed.max_workers, fixed.elastic) == (4, 4, False)
    ranged = parse_config(changed(values, "resources.workers", [1, 3])).resources
    assert (ranged.min_workers, ranged.max_workers, ranged.elastic) == (1, 3, True)


def test_every_fault_has_its_line(values: dict) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_config(changed(changed(values, "experiment", "a b"), "search.ratios", [2]))
    assert len(str(caught.value).splitlines()) == 2


def test_only_what_changes_numbers_counts_as_a_change(values: dict) -> None:
    stored = parse_config(values).model_dump(mode="json")
    for key, value in (
        ("resources.workers", 4), ("search.max_concurrent_trials", 3), ("storage.url", "/elsewhere"),
        ("search.budget", {"hours": 2}),
    ):  # fmt: skip
        assert changed_keys(stored, parse_config(changed(values, key, value))) == {}
    assert changed_keys(stored, parse_config(changed(values, "retraining.tokens", 65536))) == {
        "retraining.tokens": (32768, 65536)
    }


def test_constraints_are_on_what_is_measured(values: dict) -> None:
    constrained = changed(values, "search.constraints", {"max_bytes": 10})
    assert changed_keys(parse_config(values).model_dump(mode="json"), parse_config(constrained)) == {}
    for constraints, words in (
        ({"max_latency_ratio": 0.8}, r"max_latency_ratio is 0\.8, but evaluation\.report\.efficiency is false"),
        ({"max_drop": {"piqa": 2}}, r"max_drop names piqa, but evaluation\.report\.tasks is \[\]"),
        ({"max_drop": {"piqa": -1}}, r"search\.constraints\.max_drop\.piqa.*greater than or equal to 0"),
        ({"max_bytes": 0}, r"search\.constraints\.max_bytes.*greater than 0"),
        ({}, "give max_bytes, max_latency_ratio or max_drop"),
    ):
        with pytest.raises(BadInputError, match=words):
            parse_config(changed(values, "search.constraints", constraints))


def test_the_metric_of_a_search_is_measured_for_every_trial(values: dict) -> None:
    values["evaluation"]["selection"] |= {"tasks": ["piqa"], "metrics": ["own:measure"]}

    def with_metric(metric: str, mode: str | None = None) -> ExperimentConfig:
        return parse_config(changed(changed(values, "search.metric", metric), "search.metric_mode", mode))

    titles = {"perplexity": "mean NLL", "piqa/bits_per_byte": "bits per byte of piqa", "piqa": "piqa"}
    for metric, title in titles.items():
        assert objective(with_metric(metric).search).title == title
    assert [objective(with_metric("own:measure", mode).search).higher_is_better for mode in ("min", "max")] == [
        False,
        True,
    ]
    for metric, mode, words in (
        (
            "boolq",
            None,
            r"search\.metric is 'boolq'.*add it to evaluation\.selection\.tasks; measured are perpl",
        ),
        ("other:measure", None, r"add it to evaluation\.selection\.metrics"),
        ("own:measure", None, r"search\.metric is 'own:measure'; set search\.metric_mode to min or max"),
        ("piqa", "max", r"search\.metric_mode is given, but 'piqa' says itself"),
        ("own:measure", "up", r"search\.metric_mode.*'min' or 'max'"),
    ):
        with pytest.raises(BadInputError, match=words):
            with_metric(metric, mode)
    values["evaluation"]["selection"]["tasks"] = ["piqa", {"task": "piqa", "num_fewshot": 5}]
    with pytest.raises(BadInputError, match=r"search\.metric is 'piqa', but .*tasks lists this task twice"):
        with_metric("piqa")


def test_a_budget_is_of_training(values: dict) -> None:
    budget = changed(values, "search.budget", {"hours": 2})
    stored = parse_config(budget).model_dump(mode="json")
    assert changed_keys(stored, parse_config(changed(budget, "search.budget.hours", 3))) == {}
    del budget["retraining"]
    with pytest.raises(BadInputError, match=r"search\.budget is given, but nothing is trained"):
        parse_config(budget)


def test_a_field_that_did_not_exist_had_its_default(values: dict) -> None:
    """Whatever else the stored configuration has, such as options of criteria that it does not ask for."""
    stored = parse_config(values).model_dump(mode="json")
    assert stored["pruning"]["taylor"]
    del stored["search"]["equal_seconds"], stored["retraining"]["distill"]
    assert changed_keys(stored, parse_config(values)) == {}
    assert changed_keys(stored, parse_config(changed(values, "search.equal_seconds", True))) == {
        "search.equal_seconds": (None, True)
    }


def test_rungs_need_runs_that_can_be_continued(values: dict) -> None:
    rungs = changed(values, "search.rungs", [0.25, 1.0])
    assert parse_config(rungs).search.rungs == (0.25, 1.0)
    for key, value, said in (
        ("search.rungs", [0.3, 0.1, 1.0], "search.*rungs is"),
        ("search.rungs", [0.1, 0.3], "search.*rungs is"),
        ("retraining.cpt.schedule", "cosine", "retraining.cpt.schedule is 'cosine'"),
        ("retraining.cpt.warmup_steps", 8, "search.rungs: with 0.25 .* 8 steps, no more than its warm-up of 8"),
        ("search.rungs", [0.001, 1.0], "search.rungs: with 0.001 .* 0 steps"),
        ("search.equal_seconds", True, "equal_seconds"),
    ):
        with pytest.raises(BadInputError, match=said):
            parse_config(changed(rungs, key, value))


OPTUNA = {"ratios": [0.25], "sampler": "optuna", "trials": 8}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retraining.cpt.learning_rate": {"low": 1e-5, "high": 1e-3}}, "'grid', but retraining.cpt.learning_rate is"),
        ({"search.ratios": {"low": 0.2, "high": 0.4}}, "'grid', but search.ratios is 0.2 to 0.4"),
        ({"search.trials": 8}, "trials is 8, but sampler is 'grid'"),
        ({"search": {"ratios": [0.25], "sampler": "optuna"}}, "trials is not given"),
        ({"search": {**OPTUNA, "equal_seconds": True}}, "equal_seconds"),
        ({"search": {**OPTUNA, "trials": 0}}, "search.trials: .* greater than or equal to 1"),
        ({"search": {**OPTUNA, "ratios": {"low": 0.4, "high": 0.2}}}, "search.ratios: low is 0.4 and high is 0.2"),
        ({"search": {**OPTUNA, "ratios": {"low": 0.2, "high": 1.5}}}, "search.ratios.high: .* less than 1"),
        ({"search": {**OPTUNA, "ratios": {"low": 0.2, "high": 0.4, "log": True}}}, "ratios.log"),
        ({"search": OPTUNA, "retraining.lora.rank": {"low": 8, "high": 8}}, "retraining.lora.rank: low is 8"),
        ({"search": OPTUNA, "retraining.lora.rank": {"lo": 8, "high": 9}}, "rank.lo: unknown key; did you mean 'low'"),
        ({"search": OPTUNA, "retraining.lora.rank": []}, "retraining.lora.rank: give at least one value"),
        ({"search": OPTUNA, "retraining.distill.hard_loss_weight": {"low": 0, "high": 1, "log": True}}, "above 0"),
        (
            {"search": {**OPTUNA, "ratios": {"low": 0.2, "high": 0.4}}, "retraining.tokens": {0.25: 32768}},
            "retraining.tokens .* search.ratios is a range",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_answered(values: dict, changes: dict, said: str) -> None:
    for key, value in changes.items():
        values = changed(values, key, value)
    with pytest.raises(BadInputError, match=said):
        parse_config(values)


def test_learning_rates_that_are_not_given_are_searched(values: dict) -> None:
    """Those of adapters ten times higher."""
    values = changed(changed(values, "search", OPTUNA), "retraining.methods", ["cpt", "lora"])
    assert {field: (axis.low, axis.high, axis.log) for field, axis in parse_config(values).ranges.items()} == {
        "retraining.lora.learning_rate": (1e-4, 1e-2, True)
    }
    del values["retraining"]["cpt"]["learning_rate"]
    found = parse_config(values).ranges["retraining.cpt.learning_rate"]
    assert (found.low, found.high, found.log) == (1e-5, 1e-3, True)


def test_another_range_is_another_configuration(values: dict) -> None:
    values = changed(values, "search", OPTUNA)
    narrow, wide = (
        parse_config(changed(values, "retraining.cpt.learning_rate", {"low": 1e-5, "high": high})) for high in (1e-4, 1)
    )
    assert changed_keys(narrow.model_dump(mode="json"), narrow) == {}
    assert changed_keys(narrow.model_dump(mode="json"), wide) == {"retraining.cpt.learning_rate.high": (1e-4, 1)}
    listed = parse_config(values)
    assert "retraining.cpt.learning_rate.low" in changed_keys(listed.model_dump(mode="json"), wide)
    assert "retraining.cpt.learning_rate.low" in changed_keys(wide.model_dump(mode="json"), listed)


def test_one_value_equals_a_list_of_it(values: dict) -> None:
    """Fields that became axes are stored as one value by earlier versions."""
    stored = parse_config(values).model_dump(mode="json")
    stored["retraining"]["lora"]["rank"] = 8
    assert changed_keys(stored, parse_config(values)) == {}


def test_micro_batches_count_as_a_change_where_a_dropout_depends_on_them(values: dict) -> None:
    """The masks are drawn for each micro-batch, so that a run with another size is another run."""
    field = "retraining.micro_batch_size"
    for method, dropout, counts in (("cpt", 0.1, False), ("lora", 0.0, False), ("lora", 0.1, True)):
        lora = changed(changed(values, "retraining.methods", [method]), "retraining.lora", {"dropout": dropout})
        before, after = (parse_config(changed(lora, field, size)) for size in (1, 2))
        assert (field in changed_keys(before.model_dump(mode="json"), after)) == counts


def test_every_field_is_documented() -> None:
    def check(section: type, path: str) -> None:
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                check(inner, f"{path}{name}.")
            else:
                assert field.description, f"{path}{name} has no docstring"

    check(ExperimentConfig, "")


def test_methods_ask_for_what_they_need(values: dict) -> None:
    lora = changed(changed(values, "retraining.methods", ["lora"]), "retraining.lora.train_on", ["instructions"])
    with pytest.raises(BadInputError, match="instructions is not given"):
        parse_config(lora)
    with pytest.raises(BadInputError, match=r"search\.equal_seconds is true"):
        parse_config(changed(changed(values, "retraining.methods", ["lora"]), "search.equal_seconds", True))
    short = changed(changed(values, "retraining.methods", ["cpt_lora"]), "retraining.tokens", 1024)
    with pytest.raises(BadInputError, match=r"cpt_lora: its cpt run has a share of 0\.5, none of 1 optimiser steps"):
        parse_config(short)
    instructed = changed(lora, "retraining.instructions", {"path": "pairs.jsonl"})
    assert not parse_config(instructed).retraining.uses_corpus
    with pytest.raises(BadInputError, match=r"search\.controls is"):
        parse_config(changed(instructed, "search.controls", ["dense"]))


def test_sections_may_be_absent(values: dict) -> None:
    """Nothing is then trained, measured or asked for; what other sections say is still held against that."""
    for name in ("search", "retraining", "evaluation"):
        del values[name]
    config = parse_config(changed(values, "resources.workers", 7))
    assert (config.retraining.methods, config.retraining.runs, config.retraining.data) == (("none",), (), ())
    assert (config.search.ratios, config.search.removed_blocks) == ((), ())
    assert config.evaluation.selection.perplexity == config.evaluation.report.perplexity == ()
    with pytest.raises(
        BadInputError, match=r"search\.controls is \['dense'\].*retraining is not given; give it or drop"
    ):
        parse_config(values | {"search": {"ratios": [0.5], "controls": ["dense"]}})
    with pytest.raises(BadInputError, match=r"search\.equal_seconds is true, but retraining\.methods is \['none'\]"):
        parse_config(values | {"search": {"ratios": [0.5], "equal_seconds": True}})
    with pytest.raises(BadInputError, match=r"evaluation\.selection: required"):
        parse_config(values | {"evaluation": {}})


@pytest.mark.parametrize(("field", "example"), [("data", "my-text.jsonl"), ("tokens", "10M")])
def test_only_methods_that_train_on_text_ask_for_it(values: dict, field: str, example: str) -> None:
    del values["retraining"][field]
    with pytest.raises(BadInputError, match=rf"retraining: cpt trains on text, but {field} is not given.*{example}"):
        parse_config(values)
    assert parse_config(changed(values, "retraining.methods", ["none"])).retraining.budgets
    paired = changed(values, "retraining.instructions", {"path": "pairs.jsonl"})
    lora = changed(paired, "retraining.lora.train_on", ["instructions"])
    assert parse_config(changed(lora, "retraining.methods", ["lora"])).retraining.uses_instructions


def test_an_absent_retraining_is_that_of_method_none(values: dict) -> None:
    """Also once it has been stored."""
    del values["retraining"]
    config = parse_config(values)
    stored = config.model_dump(mode="json")
    assert changed_keys(stored, config) == {}
    assert changed_keys(stored, parse_config(values | {"retraining": {"methods": ["none"]}})) == {}
    assert parse_config(values | {"retraining": stored["retraining"]}).retraining == config.retraining


def test_a_preset_fills_in_what_is_not_given(values: dict) -> None:
    del values["retraining"]["cpt"]
    paper, short = (
        parse_config(changed(values, "retraining.preset", preset)).retraining for preset in ("paper", "short")
    )
    assert paper == parse_config(values).retraining
    assert (paper.cpt.learning_rate, short.cpt.learning_rate) == ((1e-4,), (3e-4,))
    assert (paper.lora.learning_rate, short.lora.learning_rate) == ((1e-4,), (3e-3,))
    given = changed(changed(values, "retraining.preset", "short"), "retraining.cpt.learning_rate", [1e-3])
    assert parse_config(given).retraining.cpt.learning_rate == (1e-3,)
    assert parse_config(given).retraining.cpt.warmup_ratio == 0.1


def test_a_published_protocol_has_a_name(tiny_values: dict) -> None:
    tiny_values["evaluation"]["report"] = {"perplexity": ["wikitext2@2048/bos-each", "ptb", "wikitext2@512/stride-256"]}
    first, second, third = parse_config(tiny_values).evaluation.report.perplexity
    assert (first.path, first.split, first.segment_length, first.bos) == ("Salesforce/wikitext", "test", 2048, "each")
    assert first.revision is not None
    assert (second.segment_length, second.bos, second.field) == (128, "first", "sentence")
    assert (third.segment_length, third.stride) == (512, 256)


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"report": {"perplexity": ["wikitext3@128"]}}, ["wikitext3@128", "wikitext2, ptb"]),
        ({"report": {"perplexity": ["wikitext2@128/bos-often"]}}, ["bos", "often"]),
        ({"report": {"perplexity": [{"path": "a.txt", "segment_length": 8, "stride": 8}]}}, ["stride is 8"]),
        ({"report": {"perplexity": [{"path": "a.txt", "stride": 8, "bos": "each"}]}}, ["stride", "bos"]),
        ({"report": {"metrics": ["no_function"]}}, ["no_function", "module:function"]),
        ({"report": {"tasks": ["piqa", {"task": "piqa"}]}}, ["tasks", "twice"]),
        ({"report": {"tasks": [{"task": "piqa", "shots": 2}]}}, ["shots", "num_fewshot"]),
        ({"efficiency": {"compile": True}}, ["compile", "static_cache"]),
    ],
)
def test_bad_evaluation_is_answered(tiny_values: dict, evaluation: dict, words: list[str]) -> None:
    tiny_values["evaluation"] |= evaluation
    with pytest.raises(BadInputError) as caught:
        parse_config(tiny_values)
    for word in words:
        assert word in str(caught.value)


def test_the_seven_tasks_of_the_paper_have_a_name(tiny_values: dict) -> None:
    tiny_values["evaluation"]["report"]["tasks"] = ["zero_shot", {"task": "gsm8k", "num_fewshot": 5}]
    tasks = parse_config(tiny_values).evaluation.report.tasks
    assert [task.task for task in tasks] == [
        "boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "gsm8k",
    ]  # fmt: skip
    assert tasks[-1].num_fewshot == 5


SECRET = "s3cret-value"
URL_FIELDS = (
    ("storage.url",),
    ("model.path",),
    ("calibration.path",),
    ("retraining.data.path", "retraining.data.0.path"),
    ("retraining.instructions.path",),
    ("evaluation.selection.perplexity.path", "evaluation.selection.perplexity.0.path"),
    ("evaluation.report.perplexity.path", "evaluation.report.perplexity.0.path"),
    ("evaluation.report.agreement.path", "evaluation.report.agreement.0.path"),
    ("evaluation.task_directory",),
)


@pytest.mark.parametrize("names", URL_FIELDS, ids=lambda names: names[0])
@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@bucket/x.jsonl",
        f"simplecache::s3://AKIA:{SECRET}@bucket/x.jsonl",
        f"s3://bucket/x.jsonl?access_key=AKIA&secret_key={SECRET}",
        f"https://host/x.jsonl?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
        f"s3://AKIA:{SECRET}@$NOT_SET_ANYWHERE/x.jsonl",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(tiny_values: dict, names: tuple[str, ...], url: str) -> None:
    *sections, field = names[0].split(".")
    place = tiny_values
    for name in sections:
        place = place.setdefault(name, {})
        if isinstance(place, list):
            place = place[0] if place else {}
    if isinstance(place, list):
        place = place[0]
    place[field] = url
    with pytest.raises(BadInputError, match="must not hold credentials; give it without them, as in s3://") as refusal:
        parse_config(tiny_values)
    assert SECRET not in str(refusal.value)
    assert names[-1] in str(refusal.value)


@pytest.mark.parametrize("value", [f"s3://AKIA:{SECRET}@b/x", {"path": 3, "name": f"https://h/x?sig={SECRET}"}])
@pytest.mark.parametrize("section", ["calibration", "evaluation", "model"])
def test_credentials_in_the_wrong_place_are_not_repeated(tiny_values: dict, section: str, value: object) -> None:
    with pytest.raises(BadInputError) as refusal:
        parse_config(tiny_values | {section: value})
    assert SECRET not in str(refusal.value)


def test_credentials_in_a_short_form_are_not_repeated(tiny_values: dict) -> None:
    tiny_values["evaluation"]["selection"]["perplexity"] = f"s3://AKIA:{SECRET}@bucket/x.jsonl"
    with pytest.raises(BadInputError, match=r"selection\.perplexity") as refusal:
        parse_config(tiny_values)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("name", ["../other", "a/../../b", "..", "/etc", "a/b", "", "a\nb", "-a", "a" * 101, "ä"])
def test_an_experiment_s_name_stays_below_its_storage(tiny_values: dict, name: str) -> None:
    with pytest.raises(BadInputError, match="experiment"):
        parse_config(tiny_values | {"experiment": name})


@pytest.mark.parametrize("task", ["../piqa", "a/b", "a\\b", "a\0b"])
def test_a_task_s_name_stays_in_its_directory(tiny_values: dict, task: str) -> None:
    tiny_values["evaluation"]["report"]["tasks"] = [task]
    with pytest.raises(BadInputError, match=r"tasks\.0"):
        parse_config(tiny_values)


@pytest.mark.parametrize(
    "pruning",
    [
        {"unit": "block", "criteria": ["ppl"]},
        {"unit": "width", "criteria": ["flap"]},
        {"unit": "weight", "criteria": ["wanda"]},
    ],
)
def test_a_configuration_travels_between_processes(pruning: dict, tiny_values: dict) -> None:
    tiny_values["search"]["of"] = {"block": "blocks", "width": "parameters", "weight": "nonzero"}[pruning["unit"]]
    config = parse_config(tiny_values | {"pruning": pruning})
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_message_that_is_cut_short_shows_no_credentials(tiny_values: dict) -> None:
    tiny_values["resources"]["workers"] = f"{'x' * 150} https://user:{'SECRET' * 20}@host/path"
    with pytest.raises(BadInputError) as refused:
        parse_config(tiny_values)
    assert "resources.workers" in str(refused.value)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://host/a.jsonl?" + "a" * 300, "s3://bucket/" + "k" * 300])
def test_long_names_are_those_of_urls(url: str, tiny_values: dict) -> None:
    tiny_values["calibration"]["path"] = url
    assert parse_config(tiny_values).calibrations[0].path == url
