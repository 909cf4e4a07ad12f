"""A model larger than memory: its blocks are read from safetensors when they are needed, one ahead of the compute."""

import mmap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import DTYPES
from shortened_llm.models.cpu import release_freed_memory
from shortened_llm.models.files import TensorFiles, block_of, block_prefix, refuse_mismatched, refuse_missing
from shortened_llm.models.view import empty_view, view_files
from shortened_llm.records import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedModel:
    """A causal language model of which only the parts in use are in memory.

    Embeddings and head stay where they lie, mapped from the files in the files' own dtype: what is read of them is a
    copy of some rows. Blocks are on the meta device, but for the one or two that `read_blocks` holds.
    """

    model: PreTrainedModel
    dtype: torch.dtype
    device: torch.device
    _files: TensorFiles
    _block_tensors: tuple[tuple[str, ...], ...]
    """Names of the tensors of each block."""

    @classmethod
    def open(cls, ref: ModelRef, dtype: str, *, device: str | torch.device = "cpu") -> "StreamedModel":
        """Read everything but the blocks.

        Raises:
            BadInputError: the files are damaged, or lack the head or another tensor outside the blocks.
        """
        files, model = view_files(ref), empty_view(ref, dtype).eval()
        prefix = block_prefix(files.of, model.config.num_hidden_layers)
        names: dict[int | None, list[str]] = defaultdict(list)
        for name in files.of:
            names[block_of(name, prefix)].append(name)
        streamed = cls(
            model=model,
            dtype=DTYPES[dtype],
            device=torch.device(device),
            _files=files,
            _block_tensors=tuple(tuple(names[block]) for block in range(model.config.num_hidden_layers)),
        )
        streamed._load_others(names[None])
        return streamed

    @property
    def num_blocks(self) -> int:
        return len(self._block_tensors)

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return len(self.model.get_output_embeddings().weight)

    @property
    def blocks(self) -> nn.ModuleList:
        return find_blocks(self.model)

    def read_blocks(self, order: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """Yield (index, block) in the given order; a block's weights last until the next one is asked for."""
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="read-block") as reader:
                ahead = reader.submit(self._load_block, order[0]) if order else None
                for index, following in zip_longest(order, order[1:]):
                    if ahead is not None:
                        ahead.result()
                    ahead = None if following is None else reader.submit(self._load_block, following)
                    yield index, self.blocks[index]
                    _free(self.blocks[index])
                    release_freed_memory()
        finally:
            for block in self.blocks:  # where the caller stopped early
                _free(block)

    def _load_block(self, index: int) -> None:
        tensors = dict(self._files.read(self._block_tensors[index]))
        if self.device.type == "cpu":
            # Copied in the reader's thread, so that the compute never waits for the disk; a GPU's are copies anyhow.
            tensors = {name: _copy(tensor, self.dtype) for name, tensor in tensors.items()}
        self._fill(tensors, self.device)
        self._check_filled(self.blocks[index])
        self.blocks[index].requires_grad_(False)

    def _load_others(self, names: Sequence[str]) -> None:
        for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            # In the dtype of the files: a copy in another would hold the whole matrix.
            module.weight = nn.Parameter(module.weight.to(self._matrix_dtype(names)), requires_grad=False)
        self._fill(dict(self._files.read(names)), torch.device("cpu"))
        if (
            getattr(self.model.config, "tie_word_embeddings", False)
            and self.model.get_output_embeddings().weight.is_meta
        ):
            self.model.get_output_embeddings().weight = self.model.get_input_embeddings().weight
        self._check_filled(self.model, but=self.blocks)
        self.model.requires_grad_(False)
        mapped = {id(self.model.get_input_embeddings()), id(self.model.get_output_embeddings())}
        for module in self.model.modules():
            if id(module) not in mapped:
                move = partial(_to_device, device=self.device)
                for tensors in (module._parameters, module._buffers):
                    _replace(tensors, move)

    def _matrix_dtype(self, names: Sequence[str]) -> torch.dtype:
        """Dtype of the largest tensor outside the blocks, which is the embedding or the head."""
        largest = max(names, key=lambda name: torch.Size(self._files.shapes[name]).numel())
        return next(self._files.read([largest]))[1].dtype

    def _fill(self, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        """Put tensors, named as on disk, into the model by transformers' own conversion."""
        report, _ = convert_and_load_state_dict_in_model(
            model=self.model,
            state_dict=tensors,
            load_config=LoadStateDictConfig(
                device_map={"": "cpu" if device.type == "cpu" else device},
                dtype=self.dtype,
                weight_mapping=get_model_conversion_mapping(self.model),
            ),
        )
        refuse_mismatched(self._files, report.mismatched_keys)

    def _check_filled(self, module: nn.Module, but: nn.Module | None = None) -> None:
        """Refuse weights that no file holds, in `module` without `but`."""
        excluded = {id(weight) for weight in but.parameters()} if but else set()
        names = {id(weight): name for name, weight in self.model.named_parameters(remove_duplicate=False)}
        empty = [names[id(w)] for w in module.parameters() if w.is_meta and id(w) not in excluded]
        refuse_missing(self._files, empty)


def _copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy in pages of its own, which its end gives back: on the heap, weights would leave gaps among activations."""
    size = max(1, tensor.numel()) * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype, count=tensor.numel()).view(tensor.shape).copy_(tensor)


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor if tensor.is_meta else tensor.to(device)


def _free(block: nn.Module) -> None:
    for module in block.modules():
        _replace(module._parameters, lambda weight: torch.empty_like(weight, device="meta"))


def _replace(tensors: dict, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change tensors of a module in place of the old ones; parameters stay parameters."""
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            tensors[name] = nn.Parameter(change(tensor.data), requires_grad=False)
        elif tensor is not None:
            tensors[name] = change(tensor)
