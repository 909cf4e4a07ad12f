"""What the sections of the user's schema share."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[str(info.field_name)].annotation
        entries = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(entry, bool) for entry in entries) and not _takes_truth(annotation):
            raise ValueError("should be no truth value")
        return value


def _takes_truth(annotation: Any) -> bool:
    is_one = isinstance(annotation, bool) or annotation in (bool, Any, object)
    return is_one or any(map(_takes_truth, get_args(annotation)))


def as_tuple(value: object) -> object:
    """One value stands for a list of one."""
    if value is None or isinstance(value, (list, tuple)):
        return value
    return (value,)


def distinct(values: tuple) -> tuple:
    """Refuses a value that is listed twice."""
    if len(set(values)) < len(values):
        raise ValueError("a value is listed twice")
    return values


T = TypeVar("T")
Several = Annotated[tuple[T, ...], BeforeValidator(as_tuple), AfterValidator(distinct)]
"""A list of distinct entries; one stands for a list of one."""

Number = TypeVar("Number", float, int)
VALUES, RANGE = "listed values", "a range"
"""Forms of an axis, which pydantic adds to the field's name."""


class Range(Section, Generic[Number]):
    """All numbers between two bounds, which a sampler chooses from. A field has a subclass, so that its own bounds hold
    here too."""

    low: Number
    """The least."""
    high: Number
    """The most."""
    log: bool | None = None
    """Sample on a logarithmic scale; true for learning rates and ranks unless given."""

    @model_validator(mode="after")
    def _ascends(self) -> "Range[Number]":
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}; a logarithmic scale begins above 0")
        return self

    @property
    def middle(self) -> float | int:
        """The middle on its scale."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return round(middle) if isinstance(self.low, int) else middle

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" on a logarithmic scale" if self.log else "")


def _as_axis(value: object) -> object:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        (value,) = value  # a flag makes a list of what it is given
    return value if isinstance(value, (Mapping, Range)) else as_tuple(value)


def _not_empty(axis: object) -> object:
    if axis == ():
        raise ValueError("give at least one value")
    return axis


R = TypeVar("R", bound=Range[Any])
ValuesOrRange = Annotated[
    Annotated[tuple[T, ...], AfterValidator(distinct), Tag(VALUES)] | Annotated[R, Tag(RANGE)],
    Discriminator(lambda value: RANGE if isinstance(value, (Mapping, Range)) else VALUES),
    BeforeValidator(_as_axis),
]
"""One number, a list of them, or a range, given the type of each."""


class Searched:
    """Marks a field whose values are an axis of the search."""


LOG = AfterValidator(lambda axis: axis.model_copy(update={"log": True}) if getattr(axis, "log", 0) is None else axis)
"""The scale of a range that does not name one is logarithmic."""
Axis = Annotated[ValuesOrRange[T, R], AfterValidator(_not_empty), Searched]
"""An axis of the search: one number, a list of them, or a range, given the type of each."""
Axes = dict[str, "tuple[Any, ...] | Range[Any]"]
"""The values on each axis, by the name of its field."""


def axes(section: Section) -> Axes:
    """The axes among the fields of a section."""
    return {name: getattr(section, name) for name, field in type(section).model_fields.items()
            if Searched in field.metadata}  # fmt: skip


def points(along: Axes) -> Iterator[dict[str, Any]]:
    """Every combination of values, by field; a range stands for its middle."""
    values = [axis if isinstance(axis, tuple) else (axis.middle,) for axis in along.values()]
    for point in product(*values):
        yield dict(zip(along, point, strict=True))


def only(axis: "tuple[T, ...] | Range[Any]") -> T:
    """The value of an axis that has one."""
    assert isinstance(axis, tuple), "a range is sampled before it is used"
    (value,) = axis
    return value
