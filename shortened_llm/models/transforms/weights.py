"""Single weights are zero: masks, or weights that changed with them, lie in files of their own."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from transformers import PretrainedConfig

from shortened_llm.models.files import TensorHeader, TensorPlace, read_headers
from shortened_llm.models.transforms.kind import TransformKind
from shortened_llm.records import WeightsTransform
from shortened_llm.storage.payload import local_directory

KEPT = ":kept"
"""Behind the name of a tensor: its mask, bits of bytes, set where a weight stays."""


def packed_mask(kept: torch.Tensor) -> torch.Tensor:
    """A mask of any shape as bytes, the first weight in the highest bit."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy()))


def masked_files(
    tensors: Mapping[str, TensorHeader], prefix: str, config: PretrainedConfig, transform: WeightsTransform
) -> dict[str, TensorHeader]:
    """The tensors, with a mask for some, or others in their place; those of an export have their zeros."""
    found = dict(tensors)
    if transform.payload is None:
        return found
    directory = local_directory(transform.payload.url, transform.payload.files)
    blocks = {index: block for block, index in transform.blocks}
    for name, header in read_headers(str(directory)).of.items():
        index, rest = name.split(".", 1)
        if (block := blocks.get(int(index))) is None:
            continue
        file, target = str(directory / header.file), f"{prefix}.{block}.{rest.removesuffix(KEPT)}"
        if rest.endswith(KEPT):
            found[target] = replace(found[target], kept=TensorPlace(file=file, name=header.name))
        else:
            found[target] = replace(header, file=file)
    return found


def of_toy(config: PretrainedConfig, transform: WeightsTransform) -> WeightsTransform:
    """Nothing: the masks fit no other model."""
    return replace(transform, blocks=(), zeros=())


WEIGHTS = TransformKind(
    files=masked_files,
    of_toy=of_toy,
)
