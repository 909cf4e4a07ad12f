"""Entries of the section `pruning` that set single weights to zero."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from shortened_llm.config.base import Dtype, one_of, with_options
from shortened_llm.config.entry import Entry
from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.weight import WEIGHT_CRITERIA
from shortened_llm.criteria.weight.allocation import ALLOCATORS
from shortened_llm.criteria.weight.criterion import WeightCriterion, WeightOptions
from shortened_llm.criteria.weight.refinement import REFINERS
from shortened_llm.fields import Section, Several


def _known_pattern(text: object) -> object:
    if text == "unstructured":
        return text
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text) if isinstance(text, str) else None
    if found is None or not 0 < int(found[1]) < int(found[2]):
        raise ValueError("should be 'unstructured', or N:M with N less than M, such as '2:4', in quotes")
    return text


class JointRefit(Section):
    """The weights of each output that stay are the best there are for its mask: all of them make up for all that go.
    Source: MRP, arXiv 2410.15567, section 3."""

    damping: float = Field(0.01, gt=0)
    """Share of the mean of its diagonal that is added to the diagonal of 2 X Xᵀ."""

    def __str__(self) -> str:
        return f"{self.damping:g}"


class _WeightEntry(Entry):
    """Single weights of the blocks' linear layers, which become zero: fewer weights that count, and no speed. The
    options of each criterion, allocation and refinement stand under its name."""

    unit: Literal["weight"]
    """What is removed. weight: single weights."""
    criteria: Several[Annotated[str, one_of(WEIGHT_CRITERIA)]] = Field(
        ("wanda",),
        min_length=1,
        description=f"What chooses the weights; an axis of the search. Known are {', '.join(WEIGHT_CRITERIA)}.",
    )
    pattern: Annotated[str, BeforeValidator(_known_pattern)] = "unstructured"
    """Which weights may go together. unstructured: any, as many as search.ratios says; N:M, such as "2:4": of M
    consecutive inputs of an output N stay, which is a ratio by itself."""
    allocation: Annotated[str, one_of(("uniform", *ALLOCATORS))] = "uniform"
    """How much of each block's weights goes. uniform: alike; alpha: by the spectra of its matrices; owl: by how many of
    its weights stand out."""
    refine: Annotated[str, one_of(("none", *REFINERS))] = "none"
    """Which weights come back while as many others go, once the criterion has chosen. none; dsnot: those that keep an
    output's mean; barber: those with the larger gradients. The weights that stay are then those of the model."""
    refit: JointRefit | None = None
    """How the weights that stay make up for those that go, in the place of what a criterion does by itself; reads
    calibration text. With sparsegpt the mask is still the one that it chooses by its own updates."""
    dtype: Dtype = "float32"
    """Compute type of the pass over the blocks."""

    @model_validator(mode="after")
    def _steps_fit(self) -> "_WeightEntry":
        for field, table in (("allocation", ALLOCATORS), ("refine", REFINERS)):
            chosen = getattr(self, field)
            for name in table:
                if name in self.model_fields_set and name != chosen:
                    raise ValueError(f"options of {name} are given, but {field} is {chosen!r}; set {field}: {name}")
        for name in (*self.criteria, self.allocation, self.refine):
            if isinstance(options := getattr(self, name, None), WeightOptions):
                options.check(name, self.pattern)
        return self

    @property
    def allocator(self) -> WeightOptions | None:
        """How the share of each block follows; None: it is that of all."""
        return getattr(self, self.allocation, None)

    @property
    def refiner(self) -> WeightOptions | None:
        """How the masks are refined; None: they are not."""
        return getattr(self, self.refine, None)

    def reads_text(self, criterion: str) -> bool:
        """Whether a plan by the criterion depends on calibration text."""
        steps = (ALLOCATORS.get(self.allocation), REFINERS.get(self.refine))
        return super().reads_text(criterion) or any(step.reads_text for step in steps if step)

    @property
    def rows(self) -> Mapping[str, WeightCriterion]:
        """The table of its criteria."""
        return WEIGHT_CRITERIA

    @property
    def compensates(self) -> bool:
        """Whether the weights that stay become others, whatever the criterion, which takes calibration text."""
        return self.refit is not None

    def settings(self, criterion: str) -> dict[str, object]:
        """All that the removal by one criterion depends on, besides the model and the text."""
        own = ("unit", "pattern", "dtype")
        steps = {"allocation": self.allocator, "refine": self.refiner}
        done = {name: f"{getattr(self, name)}{_not_default(step)}" for name, step in steps.items() if step}
        refit = {"refit": str(self.refit)} if self.refit else {}
        return {name: getattr(self, name) for name in own} | done | refit | self.options(criterion).model_dump()


def _not_default(options: CriterionOptions) -> str:
    """` epsilon 0.3`: what a user set to other than its default."""
    fields = type(options).model_fields
    return "".join(f" {name} {value}" for name, value in options if value != fields[name].default)


if TYPE_CHECKING:
    WeightPruning = _WeightEntry
else:
    steps = {**WEIGHT_CRITERIA, **ALLOCATORS, **REFINERS}
    WeightPruning = with_options(_WeightEntry, "WeightPruning", {name: row.options for name, row in steps.items()})
