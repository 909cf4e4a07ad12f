"""The section `pruning`."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    Tag,
    create_model,
    model_validator,
)

from shortened_llm.config.base import DEPTH, WEIGHT, WIDTH, Dtype
from shortened_llm.criteria import CRITERIA
from shortened_llm.criteria.criterion import Criterion, CriterionOptions
from shortened_llm.criteria.weight import WEIGHT_CRITERIA
from shortened_llm.criteria.weight.allocation import ALLOCATORS
from shortened_llm.criteria.weight.criterion import WeightCriterion, WeightOptions, WeightStep
from shortened_llm.criteria.weight.refinement import REFINERS
from shortened_llm.criteria.width import WIDTH_CRITERIA
from shortened_llm.criteria.width.criterion import WidthCriterion
from shortened_llm.fields import Section, as_tuple, distinct

UNITS = ("block", "sublayer", "width", "weight")


def _one_of(names: Iterable[str]) -> AfterValidator:
    """A validator of a name."""
    allowed = tuple(names)

    def check(name: str) -> str:
        if name not in allowed:
            raise ValueError(f"should be one of {', '.join(map(repr, allowed))}")
        return name

    return AfterValidator(check)


def _known_pattern(text: object) -> object:
    if text == "unstructured":
        return text
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text) if isinstance(text, str) else None
    if found is None or not 0 < int(found[1]) < int(found[2]):
        raise ValueError("should be 'unstructured', or N:M with N less than M, such as '2:4', in quotes")
    return text


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


class _Entry(Section):
    """What all kinds of entries have in common. Each criterion's options stand under its name."""

    if TYPE_CHECKING:  # each kind has a field of its own
        criteria: tuple[str, ...]

    def reads_text(self, criterion: str) -> bool:
        """Whether a plan by the criterion depends on calibration text."""
        return self.rows[criterion].reads_text or self.compensates

    @property
    def compensates(self) -> bool:
        """Whether what is left is changed, to make up for what is gone."""
        return False

    @property
    @abstractmethod
    def rows(self) -> Mapping[str, Criterion] | Mapping[str, WidthCriterion] | Mapping[str, WeightCriterion]:
        """The table of its criteria."""

    def options(self, criterion: str) -> CriterionOptions:
        """What the user set of a criterion, and the defaults of the rest."""
        options: CriterionOptions = getattr(self, criterion)
        return options

    @model_validator(mode="after")
    def _options_apply(self) -> "_Entry":
        for name in self.rows:
            # A search may have the control `random` without the criterion: see `ExperimentConfig`.
            if name in self.model_fields_set and name not in self.criteria and name != "random":
                raise ValueError(
                    f"options of {name} are given, but criteria is {list(self.criteria)}; add {name!r} or drop them"
                )
        return self


class _DepthEntry(_Entry):
    """Whole blocks or sub-layers, ranked by criteria. Each criterion's options stand under its name."""

    unit: Annotated[Literal["block", "sublayer"], BeforeValidator(_known_unit)] = "block"
    """What is removed. block: a decoder layer; sublayer: its attention or its MLP, each by itself."""
    criteria: Annotated[
        tuple[Annotated[str, _one_of(CRITERIA)], ...],
        BeforeValidator(as_tuple),
        AfterValidator(distinct),
    ] = Field(
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


class Refit(Section):
    """The output projections are fitted anew to their kept inputs: least squares on what whole blocks read behind the
    pruned ones, block after block. Source: the reformation of Search for Efficient LLMs, arXiv 2409.17372."""

    damping: Annotated[tuple[PositiveFloat, ...], BeforeValidator(as_tuple), AfterValidator(distinct)] = Field(
        (0.1, 1.0, 10.0), min_length=1
    )
    """How strongly weights are held to what they were, in means of the inputs' squares. What is best on held-out
    sequences is taken, for each projection; where none is better there, its weights stay as they are."""
    held_out: float = Field(0.25, gt=0, lt=1)
    """Share of the calibration sequences that the damping is chosen on, at least one."""

    def __str__(self) -> str:
        return f"{' or '.join(f'{one:g}' for one in self.damping)}, {100 * self.held_out:g}% held out"

    def num_held_out(self, num_sequences: int) -> int:
        """How many of the sequences that is."""
        return min(num_sequences - 1, max(1, round(num_sequences * self.held_out)))


class _WidthEntry(_Entry):
    """Heads and MLP channels of every block, ranked by criteria. Each criterion's options stand under its name."""

    unit: Literal["width"]
    """What is removed. width: key-value heads, each with its query heads, and channels of the MLP."""
    criteria: Annotated[
        tuple[Annotated[str, _one_of(WIDTH_CRITERIA)], ...],
        BeforeValidator(as_tuple),
        AfterValidator(distinct),
    ] = Field(
        ("flap",),
        min_length=1,
        description=f"Criteria to rank by; an axis of the search. Known are {', '.join(WIDTH_CRITERIA)}.",
    )
    parts: Literal["both", "mlp", "attention"] = "both"
    """Where to cut. both: an equal share of the heads and of the channels of a block; where it rounds to no head, the
    channels carry all of it."""
    allocation: Literal["uniform", "global"] = "uniform"
    """uniform: all blocks keep as many heads and channels, so that the model is a plain one of its family; global: the
    units that score lowest over all blocks go, and exports are padded with zeros to the widest block."""
    protect_first: int = Field(0, ge=0)
    """Leading blocks that keep their width (count); exports are then padded with zeros to it."""
    protect_last: int = Field(0, ge=0)
    """Trailing blocks that keep their width (count), likewise."""
    round_to: int = Field(1, ge=1)
    """The number of channels that a block keeps is a multiple of it (count), as kernels like it: 64 or 128 on GPUs."""
    refit: Refit | None = None
    """How the output projections make up for what is gone. Unless given, their weights stay."""
    bias: bool = False
    """Whether output projections get biases that hold the mean of what is gone, where the family has a field for
    them."""
    dtype: Dtype = "float32"
    """Compute type of scoring, and of refit and bias."""

    @property
    def rows(self) -> Mapping[str, WidthCriterion]:
        """The table of its criteria."""
        return WIDTH_CRITERIA

    @property
    def is_padded(self) -> bool:
        """Whether blocks end up with different widths, so that exports are padded to the widest."""
        return self.allocation == "global" or self.protect_first + self.protect_last > 0

    @property
    def compensates(self) -> bool:
        """Whether tensors are computed anew, which takes calibration text."""
        return self.bias or self.refit is not None

    def settings(self, criterion: str) -> dict[str, object]:
        """All that the removal by one criterion depends on, besides the model and the text."""
        own = ("unit", "parts", "allocation", "protect_first", "protect_last", "round_to", "dtype")
        refit = {"refit": str(self.refit)} if self.refit else {}
        bias = {"bias": True} if self.bias else {}
        return {name: getattr(self, name) for name in own} | refit | bias | self.options(criterion).model_dump()


class JointRefit(Section):
    """The weights of each output that stay are the best there are for its mask: all of them make up for all that go.
    Source: MRP, arXiv 2410.15567, section 3."""

    damping: float = Field(0.01, gt=0)
    """Share of the mean of its diagonal that is added to the diagonal of 2 X Xᵀ."""

    def __str__(self) -> str:
        return f"{self.damping:g}"


class _WeightEntry(_Entry):
    """Single weights of the blocks' linear layers, which become zero: fewer weights that count, and no speed. The
    options of each criterion, allocation and refinement stand under its name."""

    unit: Literal["weight"]
    """What is removed. weight: single weights."""
    criteria: Annotated[
        tuple[Annotated[str, _one_of(WEIGHT_CRITERIA)], ...],
        BeforeValidator(as_tuple),
        AfterValidator(distinct),
    ] = Field(
        ("wanda",),
        min_length=1,
        description=f"What chooses the weights; an axis of the search. Known are {', '.join(WEIGHT_CRITERIA)}.",
    )
    pattern: Annotated[str, BeforeValidator(_known_pattern)] = "unstructured"
    """Which weights may go together. unstructured: any, as many as search.ratios says; N:M, such as "2:4": of M
    consecutive inputs of an output N stay, which is a ratio by itself."""
    allocation: Annotated[str, _one_of(("uniform", *ALLOCATORS))] = "uniform"
    """How much of each block's weights goes. uniform: alike; alpha: by the spectra of its matrices; owl: by how many of
    its weights stand out."""
    refine: Annotated[str, _one_of(("none", *REFINERS))] = "none"
    """Which weights come back while as many others go, once the criterion has chosen. none; dsnot: those that keep an
    output's mean; barber: those with the larger gradients. The weights that stay are then those of the model."""
    refit: JointRefit | None = None
    """How the weights that stay make up for those that go, in the place of what a criterion does by itself; reads
    calibration text. With sparsegpt its mask, which it chooses by its own updates, has the best of both."""
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


def _with_options(
    base: type[Section],
    name: str,
    rows: Mapping[str, Criterion] | Mapping[str, WidthCriterion] | Mapping[str, WeightStep],
) -> Any:
    """The section with a field for the options of each row."""
    fields: dict[str, Any] = {
        name: (row.options, Field(row.options(), description=" ".join((row.options.__doc__ or "").split())))
        for name, row in rows.items()
    }
    return create_model(name, __base__=base, __doc__=base.__doc__, **fields)


if TYPE_CHECKING:
    DepthPruning = _DepthEntry
    WidthPruning = _WidthEntry
    WeightPruning = _WeightEntry
else:
    DepthPruning = _with_options(_DepthEntry, "DepthPruning", CRITERIA)
    WidthPruning = _with_options(_WidthEntry, "WidthPruning", WIDTH_CRITERIA)
    WeightPruning = _with_options(_WeightEntry, "WeightPruning", {**WEIGHT_CRITERIA, **ALLOCATORS, **REFINERS})


def _which(value: object) -> str:
    """Which kind of entry it is: `block` unless its unit says otherwise."""
    unit = value.get("unit") if isinstance(value, dict) else getattr(value, "unit", None)
    return {"width": WIDTH, "weight": WEIGHT}.get(str(unit), DEPTH)


Pruning = Annotated[
    Annotated[DepthPruning, Tag(DEPTH)] | Annotated[WidthPruning, Tag(WIDTH)] | Annotated[WeightPruning, Tag(WEIGHT)],
    Discriminator(_which),
]
"""An entry of the section."""
