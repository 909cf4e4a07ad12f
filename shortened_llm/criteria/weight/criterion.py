"""What a criterion of single weights is: it chooses the weights of a linear layer that become zero."""

from dataclasses import dataclass

from shortened_llm.criteria.criterion import CriterionOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCriterion:
    """One row of the table. What it computes is in `pruning/weight/`, under the same name."""

    options: type[CriterionOptions]
    reads_text: bool
    """Whether it wants moments of what a layer reads."""
    joint: bool = False
    """Whether it wants the products of every two inputs."""
    changes_weights: bool = False
    """Whether the weights that stay become others."""

    measured: None = None
    searches: bool = False
    is_walked: bool = False

    @property
    def statistic(self) -> None:
        """Nothing is measured beforehand: every block is pruned behind the pruned ones."""
        return

    @property
    def reads_options(self) -> bool:
        return True
