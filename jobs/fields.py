"""Print every field of the configuration as Markdown; needs no configuration, Ray or torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.cli import Parser, run
from shortened_llm.config import ExperimentConfig

PREFACE = """# Every field

`make fields` makes this page from the schema; [README.md](../README.md) has a configuration to begin with. Fields are
also flags, such as `--search.ratios "[0.2, 0.3]"` ([which](../jobs/README.md#configuration)). A number of tokens may be
written as `8k`, `1.5M` or `2B`. Paths and URLs expand `~` and environment variables. *Required* fields are required
only where their section is given.
"""
BOUNDS = {"minimum": "≥", "ge": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = Mapping[str, Any]


def main(arguments: Sequence[str]) -> None:
    """The text goes to stdout."""
    Parser(prog="python -m jobs.fields", description="Print every field as Markdown.").parse_args(arguments)
    print(field_reference(), end="")


def field_reference() -> str:
    """A table for each section of the configuration, in the order of the schema."""
    schema = ExperimentConfig.model_json_schema()
    return "\n".join([PREFACE, *_Reference(schema["$defs"]).sections("", schema)])


class _Reference:
    """Writes each section once, where it comes first; later places refer to it."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._places: dict[str, str] = {}
        """Where each section was written, by the name of its definition."""

    def sections(self, place: str, section: Schema) -> Iterator[str]:
        """The section as Markdown, and all below it.

        Args:
            place: its path in the configuration; empty for the whole.
        """
        inner: list[tuple[str, str]] = []
        lines = []
        for field, schema in section["properties"].items():
            path = f"{place}.{field}".lstrip(".")
            name, *others = _section_names(schema) or [""]
            if name and "log" in self._definitions[name]["properties"]:
                name = ""  # a range is a value
            fields = self._definitions[name]["properties"] if name else {}
            if fields and name not in self._places:
                self._places[name] = path
                inner.append((path, name))
                for other in others:  # entries of another kind
                    unit = self._definitions[other]["properties"]["unit"]["const"]
                    inner.append((f"{path} of unit {unit}", other))
            values = _link(self._places[name], schema) if fields else self._values(schema)
            default = "*required*" if field in section.get("required", ()) else "" if name else _default(schema)
            meaning = schema.get("description") or (self._definitions[name]["description"] if name else "")
            lines.append(f"| `{field}` | {values} | {default} | {_cell(meaning)} |")
        title = f"## `{place}`" if place else "## The file"
        table = "\n".join(["| field | values | default | meaning |", "|---|---|---|---|", *lines])
        yield f"{title}\n\n{section['description']}\n\n{table}\n"
        for path, name in inner:
            yield from self.sections(path, self._definitions[name])

    def _values(self, schema: Schema) -> str:
        """What a field takes, in words."""
        if "$ref" in schema:
            section = self._definitions[_section_name(schema)]
            optional = {name: "" if name in section.get("required", ()) else "?" for name in section["properties"]}
            return f"`{{{', '.join(name + mark for name, mark in optional.items())}}}`"
        for forms in ("anyOf", "oneOf"):
            if forms in schema:
                return " or ".join(dict.fromkeys(self._values(form) for form in schema[forms]))
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if "const" in schema:
            return f"`{json.dumps(schema['const'])}`"
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {self._values(schema['prefixItems'][0])}"
        if schema["type"] == "array":
            return f"list of: {self._values(schema['items'])}"
        if schema["type"] == "object":
            return f"map to: {self._values(schema['additionalProperties'])}"
        bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
        return " ".join([schema["type"], ", ".join(bounds)]).strip()


def _section_name(schema: Schema) -> str:
    """The definition of the section that a field holds, of several the first; empty where it holds none."""
    return next(iter(_section_names(schema)), "")


def _section_names(schema: Schema) -> list[str]:
    """The definitions of the sections that a field may hold."""
    if "$ref" in schema:
        return [str(schema["$ref"]).rpartition("/")[2]]
    forms = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *([schema["items"]] if "items" in schema else [])]
    return list(dict.fromkeys(name for form in forms for name in _section_names(form)))


def _link(place: str, schema: Schema) -> str:
    several = schema.get("type") == "array" or "oneOf" in schema
    return f"{'one or a list of ' if several else ''}[{place}](#{place.replace('.', '').replace(' ', '-')})"


def _default(schema: Schema) -> str:
    value = schema["default"]
    return "" if value is None else f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    run(main)
