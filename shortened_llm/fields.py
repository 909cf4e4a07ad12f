"""What the sections of the user's schema share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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


Axis = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(as_tuple), AfterValidator(distinct)]
"""One number or a list of them, which is an axis of the search."""
