"""The schema: what is refused, in which words, and what counts as a change."""

import copy
from pathlib import Path

import pytest
import yaml

from shortened_llm.config import SearchConfig, changed_keys, parse_config
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
def test_shipped_configs_are_valid(path: Path) -> None:
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
        ("scoring.criteria", ["pppl"], ["scoring.criteria.0", "'ppl'", "'taylor'", "'magnitude'"]),
        ("experiment", "", ["experiment", "letters"]),
        ("experiment", "a/b", ["experiment", "'a/b'"]),
        ("experiment", "..", ["experiment"]),
        ("retraining.tokens", 1000, ["retraining", "1,000", "1,024"]),
        ("retraining.cpt.learning_rate", [-1e-4], ["retraining.cpt.learning_rate"]),
        ("resources.workers", 3, ["global_batch_size", "3"]),
        ("model.path", "$NO_SUCH_VARIABLE/model", ["model.path", "NO_SUCH_VARIABLE"]),
    ],
)
def test_bad_values_are_named(values: dict, key: str, value: object, words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_config(changed(values, key, value))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credentials_in_a_url_are_refused_and_not_repeated(values: dict) -> None:
    with pytest.raises(BadInputError, match="credentials") as caught:
        parse_config(changed(values, "storage.url", "s3://key:hunter2@bucket/prefix"))
    assert "hunter2" not in str(caught.value)


def test_every_fault_has_its_line(values: dict) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_config(changed(changed(values, "experiment", "a b"), "search.ratios", [2]))
    assert len(str(caught.value).splitlines()) == 2


def test_only_what_changes_numbers_counts_as_a_change(values: dict) -> None:
    stored = parse_config(values).model_dump(mode="json")
    for key, value in (("resources.workers", 4), ("search.max_concurrent_trials", 3), ("storage.url", "/elsewhere")):
        assert changed_keys(stored, parse_config(changed(values, key, value))) == {}
    assert changed_keys(stored, parse_config(changed(values, "retraining.tokens", 65536))) == {
        "retraining.tokens": (32768, 65536)
    }


def test_every_field_is_documented() -> None:
    def check(section: type, path: str) -> None:
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                check(inner, f"{path}{name}.")
            else:
                assert field.description, f"{path}{name} has no docstring"

    check(SearchConfig, "")
