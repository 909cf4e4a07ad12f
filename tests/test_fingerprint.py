"""Equal inputs have equal fingerprints, whatever their order or type of number; nothing unstable is hashed."""

import pytest

from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import BlocksTransform


def test_order_and_number_type_do_not_matter() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1.0, 2], "a": 1.0})


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"a": "1"}, {"a": [1]}, {"a": None}, {"b": 1}, {"a": 1.0000001}, {"a": True}]
)
def test_values_matter(other: dict) -> None:
    assert fingerprint({"a": 1}) != fingerprint(other)


def test_records_are_hashed_by_their_fields() -> None:
    assert fingerprint(BlocksTransform(kept=(0, 1))) != fingerprint(BlocksTransform(kept=(0, 2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), {1: 2}, b"bytes"])
def test_unstable_values_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint({"a": value})
