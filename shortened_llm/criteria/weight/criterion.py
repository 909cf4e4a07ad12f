"""What a step on the way to single weights that are zero is: how many of each block go, which, and which instead."""

from dataclasses import dataclass

from shortened_llm.criteria.criterion import CriterionOptions, CriterionRow


class WeightOptions(CriterionOptions):
    """What a user may set of a step; the docstring gives its formula and source."""

    def check(self, name: str, pattern: str) -> None:
        """Raises `ValueError` where the options of the step of this name have no meaning for a pattern, `unstructured`
        or N:M."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStep(CriterionRow):
    """One row of a table of steps. What it computes is in `pruning/weight/`, under the same name. Nothing is measured
    beforehand: every block is pruned behind the pruned ones."""

    options: type[WeightOptions]
    takes_gradients: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCriterion(WeightStep):
    """One row of the table of criteria: it chooses the weights of a linear layer that become zero."""

    joint: bool = False
    """Whether it wants the products of every two inputs."""
    changes_weights: bool = False
    """Whether the weights that stay become others."""
