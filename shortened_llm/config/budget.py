"""The section `search.budget`."""

from pydantic import Field, model_validator

from shortened_llm.fields import Section


class BudgetConfig(Section):
    """What a search may spend at most. No trial begins that would pass it by its estimate; the report is written all
    the same and says what was left out. With a larger budget the same command goes on."""

    accelerator_hours: float | None = Field(None, gt=0)
    """GPUs of training, or its workers on CPU, times hours. Steps that are done again after a loss count; what scoring,
    evaluation and the start of processes take does not."""
    hours: float | None = Field(None, gt=0)
    """Wall time of one run of the search: nothing begins that would end later."""
    cost: float | None = Field(None, gt=0)
    """Accelerator-hours times hourly_price, in the currency of that."""
    hourly_price: float | None = Field(None, gt=0)
    """Price of one accelerator for an hour, in any currency."""

    @model_validator(mode="after")
    def _is_complete(self) -> "BudgetConfig":
        if self.cost is not None and self.hourly_price is None:
            raise ValueError(f"cost is {self.cost:g}, but hourly_price is not given; give what an accelerator costs")
        if self.accelerator_hours is self.hours is self.cost is self.hourly_price is None:
            raise ValueError("give accelerator_hours, hours, or cost and hourly_price")
        return self

    @property
    def most_accelerator_hours(self) -> float | None:
        """What accelerator_hours and cost allow; None where neither is given."""
        caps = [self.accelerator_hours] if self.accelerator_hours is not None else []
        if self.cost is not None and self.hourly_price is not None:
            caps.append(self.cost / self.hourly_price)
        return min(caps, default=None)
