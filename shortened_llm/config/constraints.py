"""The section `search.constraints`."""

from typing import Annotated

from pydantic import Field, model_validator

from shortened_llm.fields import Section
from shortened_llm.records import Constraints


class ConstraintsConfig(Section):
    """What the recommended model must meet. With a limit of size or latency it is, among those that meet all, the one
    with the lowest selection loss; else the smallest."""

    max_bytes: int | None = Field(None, gt=0)
    """Bytes of the exported weights, at most."""
    max_latency_ratio: float | None = Field(None, gt=0)
    """Latency / that of the dense model at each measured shape, at most; needs evaluation.report.efficiency."""
    max_drop: dict[str, Annotated[float, Field(ge=0)]] = Field({})
    """Points (of 100) that a task of evaluation.report.tasks may lose against the dense model: {piqa: 2}."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "ConstraintsConfig":
        if self.max_bytes is None and self.max_latency_ratio is None and not self.max_drop:
            raise ValueError("give max_bytes, max_latency_ratio or max_drop, such as {piqa: 2}")
        return self

    @property
    def record(self) -> Constraints:
        """The form that the report reads."""
        return Constraints(
            max_bytes=self.max_bytes,
            max_latency_ratio=self.max_latency_ratio,
            max_drop=tuple(sorted(self.max_drop.items())),
        )
