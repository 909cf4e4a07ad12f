"""Kinds of values that several sections use."""

import os
import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator, Field, Tag, create_model

from shortened_llm.credentials import CREDENTIALS_REFUSED, holds_credentials
from shortened_llm.errors import path_fault
from shortened_llm.fields import RANGE, VALUES, Section


def _expand(value: object) -> object:
    if not isinstance(value, str):
        return value
    _no_credentials(value)  # before a message repeats it
    expanded = os.path.expanduser(os.path.expandvars(value.removeprefix("file://")))
    if re.search(r"\$\{?\w", expanded):
        raise ValueError(f"{value!r} names an environment variable that is not set")
    if fault := path_fault(expanded):
        raise ValueError(fault)
    return expanded


def _no_credentials(url: str) -> str:
    if holds_credentials(url):
        raise ValueError(CREDENTIALS_REFUSED)
    return url


T = TypeVar("T")
TOTAL, BY_RATIO = "total", "by ratio"
"""Forms of retraining.tokens, which pydantic adds to the field's name."""
ONE, SEVERAL = "one", "several"
"""Forms of a section that may be a list, which pydantic adds to the section's name."""
DEPTH, WIDTH, WEIGHT = "depth entry", "width entry", "weight entry"
"""Kinds of entries of pruning, which pydantic adds to the section's name."""
FORMS = (TOTAL, BY_RATIO, ONE, SEVERAL, VALUES, RANGE, DEPTH, WIDTH, WEIGHT)


def alone(value: object) -> object:
    """A list of one stands for its entry."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


OneOrSeveral = Annotated[
    Annotated[T, Tag(ONE)] | Annotated[tuple[T, ...], Field(min_length=1), Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, (list, tuple)) else ONE),
    BeforeValidator(alone),
]
"""One entry, or a list of them: an axis of the search."""


THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def _as_count(value: object) -> object:
    """`8k`, `1.5M`, `2B` and `2e6` as whole numbers."""
    if not isinstance(value, str):
        return value
    written = re.fullmatch(r"(?P<number>\d[\d_]*(\.\d+)?(e\+?\d+)?) ?(?P<unit>[kMB]?)", value.strip())
    count = written and Decimal(written["number"].replace("_", "")) * THOUSANDS[written["unit"]]
    if not count or count != int(count):
        raise ValueError("give a whole number such as 2000000, or 2M; k, M and B are thousands, millions, billions")
    return int(count)


Tokens = Annotated[int, BeforeValidator(_as_count), Field(ge=1, le=10**15)]
"""A number of tokens, which may be written as `8k`, `1.5M` or `2B`."""
Url = Annotated[str, BeforeValidator(_expand), Field(min_length=1), AfterValidator(_no_credentials)]
Dtype = Literal["bfloat16", "float32"]
BosMode = Literal["first", "each", "none"]


def one_of(names: Collection[str]) -> AfterValidator:
    """A validator of a name."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"should be one of {', '.join(map(repr, names))}")
        return name

    return AfterValidator(check)


def with_options(base: type[Section], name: str, options: Mapping[str, type[BaseModel]]) -> Any:
    """The section with a field for each kind of options, by its name."""
    fields: dict[str, Any] = {
        name: (kind, Field(kind(), description=" ".join((kind.__doc__ or "").split())))
        for name, kind in options.items()
    }
    return create_model(name, __base__=base, __doc__=base.__doc__, __module__=base.__module__, **fields)


class Runtime:
    """Marks a field, or a whole section, that says where or how fast an experiment runs, and changes no number of its
    report."""
