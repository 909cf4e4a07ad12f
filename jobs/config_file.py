"""The experiment's file: YAML in which no key is given twice."""

import re
from pathlib import Path
from typing import Any

import yaml

from shortened_llm.errors import BadInputError, brief

INTEGER = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """YAML's own rule is that keys are unique; PyYAML keeps the last of them without a word. Whole numbers are those of
    YAML 1.2: 2:4 is no number to the base of 60, and 020 none to that of 8."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in rules if tag != INTEGER]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise BadInputError(
                    f"config: {key.value!r} is given twice, in lines {lines[key.value]} and {line}; join the two"
                )
            lines[key.value] = line
        return node


_Loader.add_implicit_resolver(INTEGER, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))


def read_config_file(path: Path) -> dict[str, object]:
    """The values of a file.

    Raises:
        BadInputError: it cannot be read, is not YAML, or has a key twice.
    """
    try:
        values = yaml.load(path.read_text("utf-8-sig"), _Loader)
    except BadInputError:
        raise
    except OSError as error:
        raise BadInputError(f"config: cannot read {brief(path)!r} ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: bytes that are no text, no such date
        raise BadInputError(f"config: {brief(path)!r} is not YAML ({brief(error)})") from None
    if not isinstance(values, dict):
        raise BadInputError(f"config: {str(path)!r} holds no sections; begin with `experiment: NAME`")
    return values
