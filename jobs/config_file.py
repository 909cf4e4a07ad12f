"""The experiment's file: YAML in which no key is given twice."""

from pathlib import Path
from typing import Any

import yaml

from shortened_llm.errors import BadInputError, brief


class _Loader(yaml.SafeLoader):
    """YAML's own rule is that keys are unique; PyYAML keeps the last of them without a word."""

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


def read_config_file(path: Path) -> dict[str, object]:
    """The values of a file.

    Raises:
        BadInputError: it cannot be read, is not YAML, or has a key twice.
    """
    try:
        values = yaml.load(path.read_text("utf-8-sig"), _Loader)
    except OSError as error:
        raise BadInputError(f"config: cannot read {str(path)!r} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"config: {str(path)!r} is not YAML ({brief(error)})") from None
    if not isinstance(values, dict):
        raise BadInputError(f"config: {str(path)!r} holds no sections; begin with `experiment: NAME`")
    return values
