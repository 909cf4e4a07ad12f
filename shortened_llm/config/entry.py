"""What the kinds of entries of the section `pruning` have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import model_validator

from shortened_llm.criteria.criterion import CriterionOptions, CriterionRow
from shortened_llm.fields import Section


class Entry(Section):
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
    def rows(self) -> Mapping[str, CriterionRow]:
        """The table of its criteria."""

    def options(self, criterion: str) -> CriterionOptions:
        """What the user set of a criterion, and the defaults of the rest."""
        options: CriterionOptions = getattr(self, criterion)
        return options

    @model_validator(mode="after")
    def _options_apply(self) -> "Entry":
        for name in self.rows:
            # A search may have the control `random` without the criterion: see `ExperimentConfig`.
            if name in self.model_fields_set and name not in self.criteria and name != "random":
                raise ValueError(
                    f"options of {name} are given, but criteria is {list(self.criteria)}; add {name!r} or drop them"
                )
        return self
