"""Some tensors of the blocks are read from other files: what pruning computed anew, in the form in which the other
transforms leave it."""

from collections.abc import Mapping
from dataclasses import replace

from transformers import PretrainedConfig

from shortened_llm.models.files import TensorHeader, read_headers
from shortened_llm.models.transforms.kind import TransformKind
from shortened_llm.records import TensorsTransform
from shortened_llm.storage.payload import local_directory


def with_fields(config: PretrainedConfig, transform: TensorsTransform) -> PretrainedConfig:
    """The configuration of a model that has all of the tensors."""
    for field in transform.config_fields:
        setattr(config, field, True)
    return config


def other_files(
    tensors: Mapping[str, TensorHeader], prefix: str, config: PretrainedConfig, transform: TensorsTransform
) -> dict[str, TensorHeader]:
    """The tensors, of which those that were computed lie in files of their own."""
    assert transform.payload is not None, "an exported model holds them"
    directory = local_directory(transform.payload.url, transform.payload.files)
    blocks, found = {index: block for block, index in transform.blocks}, dict(tensors)
    for name, header in read_headers(str(directory)).of.items():
        index, rest = name.split(".", 1)
        if (block := blocks.get(int(index))) is not None:
            found[f"{prefix}.{block}.{rest}"] = replace(header, file=str(directory / header.file))
    return found


def of_toy(config: PretrainedConfig, transform: TensorsTransform) -> TensorsTransform:
    """Nothing: the tensors fit no other model."""
    return replace(transform, blocks=(), config_fields=())


TENSORS = TransformKind(
    config=with_fields,
    files=other_files,
    of_toy=of_toy,
)
