"""The tensors of a Hugging Face directory, known from the safetensors headers alone."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from shortened_llm.errors import BadInputError
from shortened_llm.records import ModelSize

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorFiles:
    """Where each tensor of a model lies on disk."""

    directory: Path
    file_of: Mapping[str, str]
    """Tensor name -> file name."""
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (new name, tensor) for each `{name on disk: new name}`, file by file."""
        for file in sorted({self.file_of[name] for name in names}):
            with safe_open(self.directory / file, framework="pt") as tensors:
                for name, new_name in names.items():
                    if self.file_of[name] == file:
                        yield new_name, tensors.get_tensor(name)

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], torch.Tensor]]:
        """A function from a tensor's name to the tensor where it lies in its file: memory is taken by copies alone."""
        with ExitStack() as opened:
            handles: dict[str, Any] = {}

            def tensor_of(name: str) -> torch.Tensor:
                file = self.file_of[name]
                if file not in handles:
                    handles[file] = opened.enter_context(safe_open(self.directory / file, framework="pt"))
                return handles[file].get_tensor(name)

            yield tensor_of


def weight_file_names(directory: Path) -> tuple[str, ...]:
    """Names of the safetensors files that make up the model.

    Raises:
        BadInputError: there are none, or the index is damaged or names a file that is missing.
    """
    if (directory / INDEX_NAME).is_file():
        names = sorted(set(_weight_map(directory).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise BadInputError(f"model.path: {directory / INDEX_NAME} names files that are missing: {missing}")
        return tuple(names)
    if (directory / SINGLE_NAME).is_file():
        return (SINGLE_NAME,)
    raise BadInputError(
        f"model.path: {directory} holds no {SINGLE_NAME} and no {INDEX_NAME}; only safetensors weights are read"
    )


def _weight_map(directory: Path) -> dict[str, str]:
    """`{tensor name: file name}` as the index says; empty where there is no index."""
    path = directory / INDEX_NAME
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise BadInputError(f"model.path: {path} is no JSON ({error})") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise BadInputError(f"model.path: {path} has no weight_map, an object that names the file of each tensor")
    return weight_map


@lru_cache(maxsize=4)
def open_tensor_files(directory: Path) -> TensorFiles:
    """Read the headers of a model's weight files.

    Raises:
        BadInputError: a file is missing, truncated or no safetensors file, or lacks a tensor that the index names.
    """
    file_of: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weight_file_names(directory):
        try:
            with safe_open(directory / name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    file_of[key] = name
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise BadInputError(f"model.path: {directory / name} is damaged or no safetensors file ({error})") from None
    absent = {key: name for key, name in _weight_map(directory).items() if file_of.get(key) != name}
    if absent:
        key, name = next(iter(absent.items()))
        raise BadInputError(
            f"model.path: {directory / INDEX_NAME} names {len(absent)} tensors that their files lack, such as {key} in "
            f"{name}"
        )
    return TensorFiles(directory=directory, file_of=file_of, shapes=shapes)


# The first index in a tensor's name is its block's: `model.layers.7.mlp.experts.3.w1.weight` lies in block 7.
BLOCK_NAME = re.compile(r"^(?P<prefix>[^0-9]*?)\.(?P<block>\d+)\.(?P<rest>.+)$")


def block_prefix(names: Mapping[str, object], num_blocks: int) -> str:
    """The name before the block index, such as `model.layers`.

    Raises:
        BadInputError: no list in the files has exactly `num_blocks` entries.
    """
    blocks: dict[str, set[int]] = {}
    for name in names:
        if match := BLOCK_NAME.match(name):
            blocks.setdefault(match["prefix"], set()).add(int(match["block"]))
    fitting = [prefix for prefix, indices in blocks.items() if indices == set(range(num_blocks))]
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


def renumbered(names: Mapping[str, object], kept_blocks: tuple[int, ...], num_blocks: int) -> dict[str, str]:
    """`{name on disk: name in the shorter model}` for every tensor of a view."""
    prefix = block_prefix(names, num_blocks)
    position = {block: index for index, block in enumerate(kept_blocks)}
    result = {}
    for name in names:
        block = block_of(name, prefix)
        if block is None:
            result[name] = name
        elif block in position:
            result[name] = f"{prefix}.{position[block]}{name.removeprefix(f'{prefix}.{block}')}"
    return result


def model_size(files: TensorFiles, num_blocks: int) -> ModelSize:
    """Parameters of each block and of the rest. A tied head is stored once, so it is counted once."""
    prefix = block_prefix(files.shapes, num_blocks)
    per_block = [0] * num_blocks
    other = 0
    for name, shape in files.shapes.items():
        block = block_of(name, prefix)
        if block is None:
            other += prod(shape)
        else:
            per_block[block] += prod(shape)
    return ModelSize(block_parameters=tuple(per_block), other_parameters=other)
