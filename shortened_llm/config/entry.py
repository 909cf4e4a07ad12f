"""What the kinds of entries of the section `pruning` have in common."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import AfterValidator, Field, create_model, model_validator

from shortened_llm.criteria.criterion import Criterion, CriterionOptions
from shortened_llm.criteria.weight.criterion import WeightCriterion, WeightStep
from shortened_llm.criteria.width.criterion import WidthCriterion
from shortened_llm.fields import Section


def one_of(names: Iterable[str]) -> AfterValidator:
    """A validator of a name."""
    allowed = tuple(names)

    def check(name: str) -> str:
        if name not in allowed:
            raise ValueError(f"should be one of {', '.join(map(repr, allowed))}")
        return name

    return AfterValidator(check)


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
    def rows(self) -> Mapping[str, Criterion] | Mapping[str, WidthCriterion] | Mapping[str, WeightCriterion]:
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


def with_options(
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
