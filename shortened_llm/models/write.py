"""Write a model's weights file by file: as transformers' own `save_pretrained`, but with one tensor in memory."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import _TYPES as DTYPE_OF_NAME
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

MAX_FILE_BYTES = 5 * 10**9
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPE_OF_NAME.items()}


def torch_dtype(name: str) -> torch.dtype:
    """The type that safetensors calls so, such as BF16."""
    dtype = DTYPE_OF_NAME[name]
    assert dtype is not None, "every name stands for one"
    return dtype


Layout = Mapping[str, torch.Tensor]
"""What files hold: by the tensor's name in them, a tensor on the meta device, which has a shape and a type alone."""


def stored_names(plain: PreTrainedModel) -> tuple[str, ...]:
    """Names of a model's tensors that its files hold, in model order: of tied ones the one that loading expects.

    Args:
        plain: without wrappers; it needs no weights.
    """
    state = plain.state_dict()
    for name in plain._keys_to_ignore_on_save or ():
        state.pop(name, None)
    return tuple(remove_tied_weights_from_state_dict(state, plain))


def stored_form(plain: PreTrainedModel, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of the model by its names in the files: one, or several where transformers stacks experts."""
    form: dict[str, torch.Tensor] = revert_weight_conversion(plain, {name: tensor})
    return form


def stored_types(plain: PreTrainedModel) -> dict[str, torch.dtype]:
    """The type of each of a model's tensors in files: the model's own, but float32 where transformers always loads
    that, such as the biases that choose experts."""
    exact = plain._keep_in_fp32_modules_strict or ()
    return {
        name: torch.float32 if tensor.is_floating_point() and any(part in name for part in exact) else tensor.dtype
        for name, tensor in plain.state_dict().items()
    }


def stored_layout(plain: PreTrainedModel) -> Layout:
    """The layout of the files that transformers writes of a model, which needs no weights."""
    state, types = plain.state_dict(), stored_types(plain)
    layout: dict[str, torch.Tensor] = {}
    for name in stored_names(plain):
        layout |= stored_form(plain, name, torch.empty_like(state[name], dtype=types[name], device="meta"))
    return layout


class WeightWriter:
    """Writes each tensor as it comes, and hands on each file as soon as it is full."""

    def __init__(
        self, layout: Layout, directory: Path, on_file: Callable[[Path], None], max_file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        """The tensors will come in the order of `layout`, and are written in its types; `on_file` may delete the file.
        A tensor that is larger than a file has one of its own."""
        self._layout, self._directory, self._on_file = layout, directory, on_file
        self._waiting = iter(layout)
        self._files = _split(layout, max_file_bytes)
        self._names = _file_names(len(self._files))
        self._number = -1
        self._stream: BinaryIO | None = None
        self._offsets: dict[str, int] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor on any device and in any type."""
        assert next(self._waiting, None) == name, f"{name} was planned for another place"
        if name not in self._offsets:
            self._finish_file()
            self._number += 1
            self._begin_file()
        assert self._stream is not None, "a file is open"
        planned = self._layout[name]
        assert tensor.shape == planned.shape, f"{name} has the shape {tuple(tensor.shape)}"
        value = tensor.detach().to("cpu", planned.dtype).contiguous()
        with self._naming_file():
            self._stream.seek(self._offsets[name])
            self._stream.write(value.reshape(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Finish the last file, and write the index where there are several."""
        assert next(self._waiting, None) is None, "a tensor was never written"
        self._finish_file()
        if len(self._files) > 1:
            tensors = self._layout.values()
            index = {
                "metadata": {
                    "total_parameters": sum(tensor.numel() for tensor in tensors),
                    "total_size": sum(tensor.nbytes for tensor in tensors),
                },
                "weight_map": {
                    name: file for file, names in zip(self._names, self._files, strict=True) for name in names
                },
            }
            path = self._directory / SAFE_WEIGHTS_INDEX_NAME
            path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            self._on_file(path)

    def _begin_file(self) -> None:
        header, self._offsets = _header({name: self._layout[name] for name in self._files[self._number]})
        with self._naming_file():
            self._stream = (self._directory / self._names[self._number]).open("wb")
            self._stream.write(header)

    def _finish_file(self) -> None:
        if self._stream is not None:
            with self._naming_file():
                self._stream.close()
            self._stream = None
            self._on_file(self._directory / self._names[self._number])

    @contextlib.contextmanager
    def _naming_file(self) -> Iterator[None]:
        """Names the file in an error of the disk: "No space left on device" comes without it."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._directory / self._names[self._number])) from None


def _split(layout: Layout, max_file_bytes: int) -> list[list[str]]:
    """The names of the tensors of each file."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, tensor in layout.items():
        if filled and filled + tensor.nbytes > max_file_bytes:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += tensor.nbytes
    return files


def _file_names(number_of_files: int) -> list[str]:
    """Names that transformers gives to so many files."""
    if number_of_files == 1:
        return [SAFE_WEIGHTS_NAME]
    stem, suffix = SAFE_WEIGHTS_NAME.rsplit(".", 1)
    return [f"{stem}-{number:05d}-of-{number_of_files:05d}.{suffix}" for number in range(1, number_of_files + 1)]


def _header(layout: Layout) -> tuple[bytes, dict[str, int]]:
    """How a safetensors file begins (https://huggingface.co/docs/safetensors, "Format"), and where each tensor begins.

    Wider types come first, as in files of the library, so that every tensor is aligned.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for name, tensor in sorted(layout.items(), key=lambda item: -item[1].itemsize):
        begins[name], end = end, end + tensor.nbytes
        dtype = NAME_OF_DTYPE[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begins[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + begin for name, begin in begins.items()}


def write_settings(plain: PreTrainedModel, dtype: str, directory: Path) -> None:
    """Write config.json and generation_config.json, as transformers does beside the weights."""
    plain.config.dtype = dtype
    plain.config.architectures = [type(plain).__name__]
    plain.config.save_pretrained(directory)
    if plain.can_generate():
        plain.generation_config.save_pretrained(directory)
