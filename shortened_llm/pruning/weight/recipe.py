"""How single weights are chosen, and what becomes of the others: each step by name, with its options."""

from dataclasses import dataclass

from shortened_llm.config import JointRefit, WeightPruning
from shortened_llm.criteria.weight import WEIGHT_CRITERIA
from shortened_llm.criteria.weight.allocation import ALLOCATORS
from shortened_llm.criteria.weight.criterion import WeightOptions
from shortened_llm.criteria.weight.refinement import REFINERS
from shortened_llm.pruning.weight.pattern import Pattern

Step = tuple[str, WeightOptions]
"""The name of a row, and what the user set of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Allocation, mask, refinement, compensation."""

    pattern: Pattern
    pattern_name: str
    allocation: Step | None
    """How much of each block goes; None: the share of the pattern."""
    criterion: Step
    """What chooses the mask."""
    refinement: Step | None
    """What exchanges weights of the mask."""
    refit: JointRefit | None
    """How the weights that stay are computed; None: as the criterion does, or not where the mask is refined."""

    @classmethod
    def of(cls, entry: WeightPruning, criterion: str, pattern: Pattern) -> "Recipe":
        """What an entry asks for, with one of its criteria."""
        return cls(
            pattern=pattern,
            pattern_name=entry.pattern,
            allocation=(entry.allocation, entry.allocator) if entry.allocator else None,
            criterion=(criterion, WEIGHT_CRITERIA[criterion].options.model_validate(entry.options(criterion))),
            refinement=(entry.refine, entry.refiner) if entry.refiner else None,
            refit=entry.refit,
        )

    @property
    def reads_text(self) -> bool:
        tables = ((ALLOCATORS, self.allocation), (WEIGHT_CRITERIA, self.criterion), (REFINERS, self.refinement))
        return self.refit is not None or any(rows[step[0]].reads_text for rows, step in tables if step)

    @property
    def is_joint(self) -> bool:
        """Whether it wants the products of every two inputs."""
        return WEIGHT_CRITERIA[self.criterion[0]].joint or self.refit is not None

    @property
    def changes_weights(self) -> bool:
        """Whether the weights that stay become others."""
        by_criterion = WEIGHT_CRITERIA[self.criterion[0]].changes_weights and not self.refinement
        return by_criterion or self.refit is not None

    @property
    def identity(self) -> dict[str, object]:
        """All that makes a difference."""
        steps = {"allocation": self.allocation, "criterion": self.criterion, "refinement": self.refinement}
        return {
            "pattern": self.pattern,
            "refit": self.refit.model_dump() if self.refit else None,
            **{name: (step[0], step[1].model_dump()) if step else None for name, step in steps.items()},
        }

    @property
    def names(self) -> tuple[str, ...]:
        """`2:4, wanda, dsnot, refitted`"""
        steps = (self.allocation, self.criterion, self.refinement)
        return (self.pattern_name, *(step[0] for step in steps if step), *(["refitted"] if self.refit else []))
