"""The identity of a result: a hash over everything that changes its numbers."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel


def canonical(value: object) -> object:
    """Reduce `value` to JSON types with one encoding each.

    Raises:
        TypeError: for a value without a stable encoding, such as an object, a set or a NaN.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no stable encoding")
        # 1.0 and 1 are the same number in YAML and on the command line.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, BaseModel):
        return canonical({name: getattr(value, name) for name in type(value).model_fields})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return canonical({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("mapping keys must be strings")
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no stable encoding")


def fingerprint(identity: object) -> str:
    """Sixteen hex digits (64 bits) of SHA-256 over the canonical JSON of `identity`."""
    text = json.dumps(canonical(identity), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
