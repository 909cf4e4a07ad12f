"""Which weights go instead of which, once a criterion has chosen as many: a method is one row of this table, and its
maths under the same name in `pruning/weight/`."""

from typing import Literal

from pydantic import Field

from shortened_llm.criteria.weight.criterion import WeightOptions, WeightStep


class DsnotOptions(WeightOptions):
    """Weights come back and others go, output by output, until what goes changes the output's mean by little. Source:
    DSnoT, arXiv 2310.08915."""

    cycles: int = Field(50, ge=1)
    """Exchanges (count) of an output, at most."""
    threshold: float = Field(0.1, ge=0)
    """The change of an output's mean, summed over the tokens of a sequence, at which its exchanges end."""
    power: float = Field(1.0, ge=0)
    """What comes back is divided by this power of the variance of its input: what varies little comes back first."""
    layers: Literal["attention", "mlp", "both"] = "attention"
    """The layers whose masks are refined."""
    accept: Literal["improving", "always"] = "improving"
    """Which exchanges are made. improving: those that bring the mean nearer; always: all, as the code of the paper has
    it."""


class BarberOptions(WeightOptions):
    """Weights come back whose |weight| x gradient is larger than that of others, which go in their place: the gradient
    of the squared error of the attention or the MLP, at the whole weights. Source: LLM-Barber, arXiv 2408.10631."""

    rate: float = Field(0.01, ge=0, le=1)
    """Share of the exchanges that would be made that are, the best first."""
    granularity: Literal["block", "matrix", "row", "column"] = "row"
    """Where weights compete for a place. block: all of an attention, or of an MLP; matrix, row, column: of each. With a
    pattern N:M those of a row compete, and places are exchanged in groups."""

    def check(self, name: str, pattern: str) -> None:
        if pattern != "unstructured" and self.granularity != "row":
            raise ValueError(
                f"{name}.granularity is {self.granularity!r}, but pattern is {pattern}, whose groups lie in rows; set "
                "granularity: row"
            )


REFINERS: dict[str, WeightStep] = {
    "dsnot": WeightStep(options=DsnotOptions, reads_text=True),
    "barber": WeightStep(options=BarberOptions, reads_text=True, takes_gradients=True),
}
"""Beside `none`."""
