"""The tensors of a Hugging Face directory or URL, known from the safetensors headers alone."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from shortened_llm.errors import BadInputError, brief
from shortened_llm.models.families import TEXT_PARTS
from shortened_llm.storage.payload import use
from shortened_llm.storage.urls import file_size, is_local, join, read_bytes, read_range

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MOST_HEADER_BYTES = 100_000_000
"""The most that the format allows."""


Selection = tuple[tuple[int, tuple[int, ...]], ...]
"""What of a stored tensor a view has: (dimension, positions along it in the files); zeros where a position is -1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies."""

    file: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """What a file says of one tensor."""

    file: str
    """Name of the file in the directory; the path of one that lies elsewhere."""
    name: str
    """The tensor's name in the file; a view may call it otherwise."""
    shape: tuple[int, ...]
    dtype: str
    """The name that safetensors gives it, such as BF16."""
    selection: Selection = ()
    """Where a view has a part of it; `shape` is that of the part."""
    kept: TensorPlace | None = None
    """Where a view has zeros in it: the mask of the part, bits of bytes, set where a number stays."""

    def part(self, stored: torch.Tensor) -> torch.Tensor:
        """What a view has of the stored tensor, which is the tensor itself or a copy."""
        for dim, positions in self.selection:
            index = torch.tensor(positions)
            stored = stored.index_select(dim, index.clamp(min=0))
            if (index < 0).any():
                stored.index_fill_(dim, (index < 0).nonzero().flatten(), 0)
        return stored if self.kept is None else stored * self._mask(self.kept)

    def _mask(self, place: TensorPlace) -> torch.Tensor:
        with safe_open(place.file, framework="np") as tensors:
            bits = np.unpackbits(tensors.get_tensor(place.name), count=math.prod(self.shape))
        return torch.from_numpy(bits).view(self.shape)


@dataclass(frozen=True, slots=True)
class TensorHeaders:
    """The headers of a model's weight files."""

    place: str
    """Directory or URL."""
    of: Mapping[str, TensorHeader]
    """By the tensor's name."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: header.shape for name, header in self.of.items()}

    def in_files(self, name: str) -> str:
        """The name of a tensor of a view with its block's index in the files, also where the files lack it."""
        if own := BLOCK_NAME.match(name):
            for other, header in self.of.items():
                beside, stored = BLOCK_NAME.match(other), BLOCK_NAME.match(header.name)
                if beside and stored and beside["block"] == own["block"]:
                    return f"{own['prefix']}.{stored['block']}.{own['rest']}"
        return name


@dataclass(frozen=True, slots=True)
class TensorFiles(TensorHeaders):
    """Weight files on this node, to be read."""

    @property
    def directory(self) -> Path:
        return Path(self.place)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) for each name, file by file."""
        by_file: dict[str, list[str]] = defaultdict(list)
        for name in names:
            by_file[self.of[name].file].append(name)
        use(self.directory)
        for file in sorted(by_file):
            with safe_open(self.directory / file, framework="pt") as tensors:
                for name in by_file[file]:
                    yield name, self.of[name].part(tensors.get_tensor(self.of[name].name))

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], torch.Tensor]]:
        """A function from a tensor's name to the tensor where it lies in its file: copies alone take memory, such as
        what a view selects of it."""
        with ExitStack() as opened:
            handles: dict[str, Any] = {}

            def tensor_of(name: str) -> torch.Tensor:
                header = self.of[name]
                if header.file not in handles:
                    handles[header.file] = opened.enter_context(safe_open(self.directory / header.file, framework="pt"))
                return header.part(handles[header.file].get_tensor(header.name))

            yield tensor_of


def weight_file_names(place: str) -> tuple[str, ...]:
    """Names of the safetensors files that make up the model in a directory or URL.

    Raises:
        BadInputError: there are none, or the index is damaged or names a file that is missing.
    """
    if weight_map := _weight_map(place):
        names = sorted(set(weight_map.values()))
        if missing := [name for name in names if file_size(join(place, name)) is None]:
            raise BadInputError(f"model.path: {join(place, INDEX_NAME)} names files that are missing: {missing}")
        return tuple(names)
    if file_size(join(place, SINGLE_NAME)) is not None:
        return (SINGLE_NAME,)
    raise BadInputError(
        f"model.path: {place} holds no {SINGLE_NAME} and no {INDEX_NAME}; only safetensors weights are read"
    )


def _weight_map(place: str) -> dict[str, str]:
    """`{tensor name: file name}` as the index says; empty where there is no index."""
    url = join(place, INDEX_NAME)
    try:
        index = json.loads(read_bytes(url))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadInputError(f"model.path: {url} is no JSON ({brief(error)})") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise BadInputError(f"model.path: {url} has no weight_map, an object that names the file of each tensor")
    return weight_map


def has_head(directory: Path) -> bool | None:
    """Whether the files hold a head of the language model; None where a directory of metadata does not tell."""
    names: Iterable[str] = _weight_map(str(directory))
    if not names and (directory / SINGLE_NAME).exists():
        names = _read_header(str(directory), SINGLE_NAME)
    return is_head_among(names) if names else None


def is_head_among(names: Iterable[str]) -> bool:
    """Whether one of the tensors is the head of a language model."""
    return any("lm_head." in name for name in names)


@lru_cache(maxsize=4)
def open_tensor_files(directory: Path) -> TensorFiles:
    """The weight files of a model on this node; raises as `read_headers`."""
    return TensorFiles(str(directory), read_headers(str(directory)).of)


def read_headers(place: str) -> TensorHeaders:
    """Read the headers of a model's weight files, and no more of them, from a directory or URL; of `TEXT_PARTS` those
    of the text part.

    Raises:
        BadInputError: a file is missing, truncated or no safetensors file, or lacks a tensor that the index names.
    """
    names = weight_file_names(place)
    found: dict[str, TensorHeader] = {}
    with ThreadPoolExecutor(1 if is_local(place) else 8) as threads:
        for of_file in threads.map(lambda name: _read_header(place, name), names):
            found |= of_file
    absent = {key: name for key, name in _weight_map(place).items() if key not in found or found[key].file != name}
    if absent:
        key, name = next(iter(absent.items()))
        raise BadInputError(
            f"model.path: {join(place, INDEX_NAME)} names {len(absent)} tensors that their files lack, such as {key} "
            f"in {name}"
        )
    return TensorHeaders(place, _text_part(found) if model_type(place) in TEXT_PARTS else found)


def model_type(place: str) -> str | None:
    """What the config.json in a directory or URL says; None without one that can be read."""
    try:
        return str(json.loads(read_bytes(join(place, "config.json")))["model_type"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


# `language_model.model.layers.0...`, or `model.language_model.layers.0...`.
TEXT_NAME = re.compile(r"(model\.)?language_model\.(?P<own>model\.|lm_head\.)?(?P<rest>.+)$")


def _text_part(whole: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    """The tensors of the text part of a model of several modalities, by their names in a model of text alone."""
    found = {}
    for name, header in whole.items():
        if match := TEXT_NAME.match(name):
            found[f"{match['own'] or 'model.'}{match['rest']}"] = header
        elif name.startswith("lm_head."):
            found[name] = header
    return found


def _read_header(place: str, name: str) -> dict[str, TensorHeader]:
    """A file begins with the length of its header, in eight bytes, and that header as JSON; tensors fill the rest."""
    url = join(place, name)
    size = file_size(url) or 0
    length = int.from_bytes(read_range(url, 0, 8), "little") if size >= 8 else 0
    try:
        if not 0 < length <= min(MOST_HEADER_BYTES, size - 8):
            raise ValueError("no header of safetensors")
        entries = dict(json.loads(read_range(url, 8, 8 + length)))
        entries.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError(f"{size:,} bytes instead of {8 + length + max(ends, default=0):,}")
        return {
            key: TensorHeader(file=name, name=key, shape=tuple(map(int, entry["shape"])), dtype=str(entry["dtype"]))
            for key, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInputError(f"model.path: {url} is damaged or no safetensors file ({brief(error)})") from None


# The first index in a tensor's name is its block's: `model.layers.7.mlp.experts.3.w1.weight` lies in block 7.
BLOCK_NAME = re.compile(r"^(?P<prefix>[^0-9]*?)\.(?P<block>\d+)\.(?P<rest>.+)$")


def block_prefix(names: Mapping[str, object], num_blocks: int) -> str:
    """The name before the block index, such as `model.layers`. More blocks than the model has may follow in the files.

    Raises:
        BadInputError: no list in the files, or several, hold `num_blocks` entries.
    """
    blocks: dict[str, set[int]] = {}
    for name in names:
        if match := BLOCK_NAME.match(name):
            blocks.setdefault(match["prefix"], set()).add(int(match["block"]))
    wanted = set(range(num_blocks))
    equal = [prefix for prefix, indices in blocks.items() if indices == wanted]
    fitting = equal or [prefix for prefix, indices in blocks.items() if indices >= wanted]
    if len(fitting) != 1:
        raise BadInputError(
            f"model.path: cannot tell the {num_blocks} blocks of this architecture from its tensor names "
            f"(lists found: { {prefix: len(indices) for prefix, indices in blocks.items()} })"
        )
    return fitting[0]


def block_of(name: str, prefix: str) -> int | None:
    """The block that a tensor lies in, where the names of the blocks begin with `prefix`; None outside the blocks."""
    match = BLOCK_NAME.match(name)
    return int(match["block"]) if match and match["prefix"] == prefix else None


def unjoinable_experts(place: str) -> BadInputError:
    """The error for a block whose experts are not complete or not alike."""
    return BadInputError(
        f"model.path: {place} lacks weights of experts, or has them in different shapes: transformers cannot "
        "join the experts of a block; every weight must be in the files"
    )


Mismatch = tuple[str, Sequence[int], Sequence[int]]
"""A tensor's name in a view, its shape in the files, its shape in the model."""


def refuse_mismatched(files: TensorHeaders, mismatched: Iterable[Mismatch]) -> None:
    """Raises `BadInputError` where there are any."""
    if found := sorted(mismatched):
        name, stored, wanted = found[0]
        raise BadInputError(
            f"model.path: {len(found)} tensors of {files.place} have another shape than its config.json asks for, "
            f"such as {files.in_files(name)}, which has {tuple(stored)} instead of {tuple(wanted)}"
        )


def refuse_missing(files: TensorHeaders, names: Iterable[str]) -> None:
    """Raises `BadInputError` where there are any, `names` being those of a view."""
    if missing := sorted(map(files.in_files, names)):
        raise BadInputError(
            f"model.path: {files.place} lacks {len(missing)} tensors of the model, such as {', '.join(missing[:3])}; "
            "every weight must be in the files"
        )
