"""Entries of the section `pruning` that remove blocks or sub-layers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from shortened_llm.config.base import Dtype, one_of, with_options
from shortened_llm.config.entry import Entry
from shortened_llm.criteria import CRITERIA
from shortened_llm.criteria.criterion import Criterion
from shortened_llm.fields import Several

UNITS = ("block", "sublayer", "width", "weight")


def _listed_criteria() -> str:
    """The criteria by what they are measured on."""
    text = [name for name, row in CRITERIA.items() if row.reads_text]
    weights = [name for name, row in CRITERIA.items() if row.measured and not row.reads_text]
    controls = [name for name, row in CRITERIA.items() if not row.measured]
    return (
        f"From calibration text: {', '.join(text)}; from the weights: {', '.join(weights)}; controls: "
        f"{', '.join(controls)}."
    )


def _known_unit(unit: object) -> object:
    if unit not in UNITS:
        raise ValueError(f"should be one of {', '.join(map(repr, UNITS))}")
    return unit


class _DepthEntry(Entry):
    """Whole blocks or sub-layers, ranked by criteria. Each criterion's options stand under its name."""

    unit: Annotated[Literal["block", "sublayer"], BeforeValidator(_known_unit)] = "block"
    """What is removed. block: a decoder layer; sublayer: its attention or its MLP, each by itself."""
    criteria: Several[Annotated[str, one_of(CRITERIA)]] = Field(
        ("ppl", "taylor", "magnitude"),
        min_length=1,
        description=f"Criteria to rank by; an axis of the search. {_listed_criteria()} Unless given, ppl alone ranks "
        "sub-layers.",
    )
    protect_first: int = Field(4, ge=0)
    """Leading blocks that are never removed, nor any part of them (count)."""
    protect_last: int = Field(2, ge=0)
    """Trailing blocks that are never removed, nor any part of them (count)."""
    dtype: Dtype = "float32"
    """Compute type of scoring. Scores at the cut often differ by less than a bfloat16 rounding."""

    @property
    def rows(self) -> Mapping[str, Criterion]:
        """The table of its criteria."""
        return CRITERIA

    def settings(self, criterion: str) -> dict[str, object]:
        """All that the removal by one criterion depends on, besides the model and the text."""
        own = ("unit", "protect_first", "protect_last", "dtype")
        return {name: getattr(self, name) for name in own} | self.options(criterion).model_dump()

    @model_validator(mode="before")
    @classmethod
    def _default_criteria(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("unit") == "sublayer" and "criteria" not in values:
            return {**values, "criteria": ("ppl",)}
        return values

    @model_validator(mode="after")
    def _criteria_rank_units(self) -> "_DepthEntry":
        if unfit := [name for name in self.criteria if self.unit not in CRITERIA[name].units]:
            able = [name for name, row in CRITERIA.items() if self.unit in row.units]
            raise ValueError(f"{unfit[0]} cannot rank units of {self.unit!r}; allowed are {', '.join(able)}")
        return self


if TYPE_CHECKING:
    DepthPruning = _DepthEntry
else:
    DepthPruning = with_options(_DepthEntry, "DepthPruning", {name: row.options for name, row in CRITERIA.items()})
