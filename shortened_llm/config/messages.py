"""What is said of a configuration that cannot be used."""

import difflib
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ValidationError

from shortened_llm.config.base import FORMS, WEIGHT, WIDTH
from shortened_llm.config.experiment import ExperimentConfig, section_of
from shortened_llm.config.weight import WeightPruning
from shortened_llm.config.width import WidthPruning
from shortened_llm.credentials import hidden
from shortened_llm.errors import BadInputError, brief

ENTRIES: Mapping[str, type[BaseModel]] = {WIDTH: WidthPruning, WEIGHT: WeightPruning}
"""Entries of pruning that the first kind does not stand for."""


SAID = {
    "model_type": "give its fields, each as KEY: value",
    "model_attributes_type": "give its fields, each as KEY: value",
    "dict_type": "give its fields, each as KEY: value",
    "tuple_type": "give a list",
    "too_short": "give at least 1",
    "string_too_short": "give at least 1 character",
}
"""What is said instead of the validator's own terms, by the type of the fault."""


def _section_at(location: Sequence[str | int]) -> type[BaseModel] | None:
    """The section at `location`."""
    section: type[BaseModel] = ExperimentConfig
    for part in location:
        section = ENTRIES.get(str(part), section)
        if isinstance(part, int) or part in FORMS:
            continue
        field = section.model_fields.get(part)
        inner = section_of(field.annotation) if field else None
        if inner is None:
            return None
        section = inner
    return section


def _unknown(key: str, value: object, section: type[BaseModel] | None) -> str:
    """What to say of a key that a section does not have: the name that is nearest, by the keys that it holds where it
    is a section itself, then by its spelling."""
    fields = section.model_fields if section else {}
    held = value.keys() if isinstance(value, Mapping) else set()
    inner = {name: section_of(field.annotation) for name, field in fields.items()}
    shared = {name: len(held & one.model_fields.keys()) if one else 0 for name, one in inner.items()}
    most = max(shared.values(), default=0)
    alike = [name for name, count in shared.items() if count == most]
    near = difflib.get_close_matches(key, alike, n=1, cutoff=0.0 if most else 0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"


def describe_errors(error: ValidationError) -> str:
    """One line per fault: the field, the value, what is allowed."""
    lines = []
    faults = error.errors()
    for fault in faults:
        location = fault["loc"]
        if any(other["loc"][: len(location)] == location for other in faults if len(other["loc"]) > len(location)):
            continue  # A fault of the parts explains the fault of the whole.
        name = ".".join(str(part) for part in location if part not in (*FORMS, "[key]")) or "config"
        if fault["type"] == "extra_forbidden":
            lines.append(
                f"{name}: unknown key; {_unknown(str(location[-1]), fault['input'], _section_at(location[:-1]))}"
            )
        elif fault["type"] == "missing":
            lines.append(f"{name}: required")
        else:
            message = SAID.get(fault["type"], fault["msg"].removeprefix("Value error, "))
            unsaid = isinstance(fault["input"], Mapping) or "credentials" in message
            value = "" if unsaid else f" (is {brief(hidden(repr(fault['input'])))})"
            lines.append(f"{name}: {message[:1].lower() + message[1:]}{value}")
    return hidden("\n".join(lines))


# What each section that is optional may look like.
EXAMPLES = {
    "search": "{ratios: [0.2, 0.4]}",
    "retraining": "{methods: [cpt], data: {path: my-text.jsonl}, tokens: 10M}",
    "evaluation": "{selection: {perplexity: {path: my-text.jsonl}}}",
}


def require_sections(config: ExperimentConfig, sections: Sequence[str], verb: str) -> None:
    """Raises `BadInputError` with one line for each of the sections that a command needs and that is not given.

    Args:
        verb: the command, such as `jobs.evaluate`.
    """
    if missing := [name for name in sections if name not in config.model_fields_set]:
        raise BadInputError(
            "\n".join(f"{name}: {verb} needs this section; give one such as {EXAMPLES[name]}" for name in missing)
        )


def parse_config(values: Mapping[str, object]) -> ExperimentConfig:
    """Check `values`; raises `BadInputError` with one line per fault."""
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise BadInputError(describe_errors(error)) from None
