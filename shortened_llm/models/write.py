"""Write a model's weights file by file: as transformers' own `save_pretrained`, but never with more in memory than one
tensor and one file."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

MAX_FILE_BYTES = 5 * 10**9


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
    found = revert_weight_conversion(plain, {name: tensor})
    return {stored: value.clone() if len(found) > 1 else value.contiguous() for stored, value in found.items()}


class WeightWriter:
    """Takes a model's tensors in the order of `stored_names`, and hands on each file as soon as it is full."""

    def __init__(
        self,
        plain: PreTrainedModel,
        directory: Path,
        on_file: Callable[[Path], None],
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        """`plain` needs no weights, and says in which type each tensor is stored; `on_file` may delete the file. A
        tensor that is larger has a file of its own."""
        self._plain, self._directory, self._on_file = plain, directory, on_file
        self._state = plain.state_dict()
        self._max_bytes = max_file_bytes
        self._held: dict[str, torch.Tensor] = {}
        self._weight_map: dict[str, str] = {}
        self._bytes = self._parameters = self._written = 0
        self._number_of_files = sum(1 for _ in self._plan())

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor on any device and in any type."""
        kept = tensor.to("cpu", self._state[name].dtype)
        for stored, value in stored_form(self._plain, name, kept).items():
            if self._held and _num_bytes(self._held.values()) + value.nbytes > self._max_bytes:
                self._flush()
            self._held[stored] = value

    def close(self) -> None:
        """Write what is left, and the index where there are several files."""
        self._flush()
        assert self._written == self._number_of_files, "tensors were not those that were planned"
        if self._number_of_files > 1:
            metadata = {"total_parameters": self._parameters, "total_size": self._bytes}
            index = {"metadata": metadata, "weight_map": self._weight_map}
            path = self._directory / SAFE_WEIGHTS_INDEX_NAME
            path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            self._on_file(path)

    def _plan(self) -> Iterator[int]:
        """The bytes of each file, from shapes alone."""
        filled = 0
        for name in stored_names(self._plain):
            for value in stored_form(self._plain, name, torch.empty_like(self._state[name], device="meta")).values():
                if filled and filled + value.nbytes > self._max_bytes:
                    yield filled
                    filled = 0
                filled += value.nbytes
        yield filled

    def _flush(self) -> None:
        self._written += 1
        stem, suffix = SAFE_WEIGHTS_NAME.rsplit(".", 1)
        of_several = f"{stem}-{self._written:05d}-of-{self._number_of_files:05d}.{suffix}"
        path = self._directory / (of_several if self._number_of_files > 1 else SAFE_WEIGHTS_NAME)
        save_file(self._held, path, metadata={"format": "pt"})
        self._weight_map |= dict.fromkeys(self._held, path.name)
        self._bytes += _num_bytes(self._held.values())
        self._parameters += sum(tensor.numel() for tensor in self._held.values())
        self._held = {}
        self._on_file(path)


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def write_settings(plain: PreTrainedModel, dtype: str, directory: Path) -> None:
    """Write config.json and generation_config.json, as transformers does beside the weights."""
    plain.config.dtype = dtype
    plain.config.architectures = [type(plain).__name__]
    plain.config.save_pretrained(directory)
    if plain.can_generate():
        plain.generation_config.save_pretrained(directory)
