"""How much of each block's weights goes: a method is one row of this table, and its maths under the same name in
`pruning/weight/`."""

from typing import Literal

from pydantic import Field

from shortened_llm.criteria.weight.criterion import WeightOptions, WeightStep


class _Allocation(WeightOptions):
    def check(self, name: str, pattern: str) -> None:
        if pattern != "unstructured":
            raise ValueError(
                f"allocation is {name!r}, but pattern {pattern} takes as much from every block; set pattern: "
                "unstructured, or allocation: uniform"
            )


class AlphaOptions(_Allocation):
    """Blocks whose weights have heavy-tailed spectra are well trained, and lose less. No data. Source: AlphaPruning,
    arXiv 2410.10912."""

    epsilon: float = Field(0.2, ge=0, lt=1)
    """How far the shares of blocks lie apart: before they are scaled, from 1 - epsilon to 1 + epsilon."""
    estimator: Literal["mid", "peak", "public"] = "mid"
    """What counts as the tail of a spectrum. mid: its upper half, which is stable; peak: from the value on from which a
    power law fits best, near the mode of the histogram; public: likewise, from any value below 1.5 times the mode, as
    the code of the paper has it."""


class OwlOptions(_Allocation):
    """Blocks with more weights that stand out lose less: those whose |weight| x Euclidean norm of its input is above a
    multiple of the block's mean, in the dense model. Source: OWL, arXiv 2310.05175."""

    multiple: float = Field(5.0, gt=0)
    """The multiple of the mean."""
    spread: float = Field(0.08, ge=0, lt=1)
    """How far the share of a block may lie from that of all: the largest and the smallest are 2 x spread apart."""


ALLOCATORS: dict[str, WeightStep] = {
    "alpha": WeightStep(options=AlphaOptions, reads_text=False),
    "owl": WeightStep(options=OwlOptions, reads_text=True),
}
"""Beside `uniform`."""
