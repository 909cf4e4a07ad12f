"""Entries of the section `pruning` that remove heads and MLP channels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from shortened_llm.config.base import Dtype, one_of, with_options
from shortened_llm.config.entry import Entry
from shortened_llm.criteria.width import WIDTH_CRITERIA
from shortened_llm.criteria.width.criterion import WidthCriterion
from shortened_llm.fields import Section, Several


class Refit(Section):
    """The output projections are fitted anew to their kept inputs: least squares on what whole blocks read behind the
    pruned ones, block after block. Source: the reformation of Search for Efficient LLMs, arXiv 2409.17372."""

    damping: Several[PositiveFloat] = Field((0.1, 1.0, 10.0), min_length=1)
    """How strongly weights are held to what they were, in means of the inputs' squares. What is best on held-out
    sequences is taken, for each projection; where none is better there, its weights stay as they are."""
    held_out: float = Field(0.25, gt=0, lt=1)
    """Share of the calibration sequences that the damping is chosen on, at least one."""

    def __str__(self) -> str:
        return f"{' or '.join(f'{one:g}' for one in self.damping)}, {100 * self.held_out:g}% held out"

    def num_held_out(self, num_sequences: int) -> int:
        """How many of the sequences that is."""
        return min(num_sequences - 1, max(1, round(num_sequences * self.held_out)))


class _WidthEntry(Entry):
    """Heads and MLP channels of every block, ranked by criteria. Each criterion's options stand under its name."""

    unit: Literal["width"]
    """What is removed. width: key-value heads, each with its query heads, and channels of the MLP."""
    criteria: Several[Annotated[str, one_of(WIDTH_CRITERIA)]] = Field(
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
    them. The mean is that behind blocks that are cut already; the public code of FLAP takes it behind whole ones."""
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


if TYPE_CHECKING:
    WidthPruning = _WidthEntry
else:
    WidthPruning = with_options(
        _WidthEntry, "WidthPruning", {name: row.options for name, row in WIDTH_CRITERIA.items()}
    )
