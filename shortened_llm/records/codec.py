"""The JSON form of every record."""

from typing import TypeVar

import pydantic_core
from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(record: object, *, indent: int | None = 2) -> str:
    """The JSON form of any record below. JSON has no number for NaN and infinity: they are strings, read as numbers."""
    return pydantic_core.to_json(record, indent=indent, inf_nan_mode="strings").decode()


def from_json(record_type: type[T], text: str | bytes) -> T:
    """Read a record back; raises `pydantic.ValidationError` where the text is not its JSON form."""
    return TypeAdapter(record_type).validate_json(text)
