"""What a sampler chooses from."""

from collections.abc import Mapping
from typing import Any

from shortened_llm.config.retraining import RetrainingConfig
from shortened_llm.config.search import SearchSection
from shortened_llm.fields import Range
from shortened_llm.methods import METHODS
from shortened_llm.methods.method import OptimizerOptions


def with_learning_rates(values: object) -> object:
    """The user's values, where a sampler searches for the learning rates that they do not give."""
    if not isinstance(values, Mapping):
        return values
    search, retraining = values.get("search"), values.get("retraining")
    samples = isinstance(search, Mapping) and search.get("sampler") == "optuna"
    if not samples or not isinstance(retraining, Mapping):
        return values
    filled = dict(retraining)
    for name, row in METHODS.items():
        given = retraining.get(name, {})
        if row.options and issubclass(row.options, OptimizerOptions) and isinstance(given, Mapping):
            low, high = row.learning_rates
            filled[name] = {"learning_rate": {"low": low, "high": high}, **given}
    return {**values, "retraining": filled}


def ranges(search: SearchSection, retraining: RetrainingConfig) -> dict[str, Range[Any]]:
    """Every range that the search covers, by field."""
    found: dict[str, Range[Any]] = {"search.ratios": search.ratios} if isinstance(search.ratios, Range) else {}
    for method in retraining.methods:
        of_method = retraining.axes(method).items()
        found |= {f"retraining.{field}": axis for field, axis in of_method if isinstance(axis, Range)}
    return found


def check_sampler(search: SearchSection, retraining: RetrainingConfig) -> None:
    """Check that ranges are sampled.

    Raises:
        ValueError: naming the field.
    """
    found = ranges(search, retraining)
    if found and search.sampler == "grid":
        listed = "; ".join(f"{field} is {axis}" for field, axis in found.items())
        raise ValueError(f"search.sampler is 'grid', but {listed}; list values, or set sampler optuna and trials")
