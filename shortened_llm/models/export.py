"""Write a view as a plain Hugging Face directory, and prove that it is one; the model is never whole in memory."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import DTYPES
from shortened_llm.models.directory import load_tokenizer, model_directory, set_generation_config
from shortened_llm.models.files import TensorFiles, read_headers
from shortened_llm.models.shards import device_of
from shortened_llm.models.sources import check_ties, find_sources
from shortened_llm.models.view import plain_files, plain_model, view_config, view_files
from shortened_llm.models.write import Layout, WeightWriter, stored_names, stored_types, write_settings
from shortened_llm.records import ModelRef

PROBE_LENGTH = 16
PROBE_NEW_TOKENS = 4


class ExportError(RuntimeError):
    """The written directory does not load as the model that was written."""


def export_view(ref: ModelRef, directory: Path, dtype: str) -> None:
    """Write a view in a directory of its own, one stored tensor after another, and prove that it reloads.

    Raises:
        BadInputError: the disk has no room for it.
        ExportError: as `verify_export`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    plain, files = plain_model(ref, dtype), plain_files(ref)
    set_generation_config(plain, model_directory(ref))
    with _exported_tensors(ref) as stored_tensor:
        layout = _layout(plain, files, stored_tensor)
        needed, free = sum(tensor.nbytes for tensor in layout.values()), shutil.disk_usage(directory).free
        if _stacks_experts(plain, files):
            needed *= 2  # they lie there once more while the export is proven
        if needed > free:
            raise BadInputError(f"{directory}: {needed:,} bytes are to be written, and its disk has {free:,} left")
        writer = WeightWriter(layout, directory, on_file=lambda _: None)
        for name in layout:
            writer.add(name, stored_tensor(name))
        writer.close()
    write_settings(plain, dtype, directory)
    load_tokenizer(model_directory(ref)).save_pretrained(directory)
    verify_export(ref, directory, dtype)


@contextmanager
def _exported_tensors(ref: ModelRef) -> Iterator[Callable[[str], torch.Tensor]]:
    """A function from a tensor's name in the files of an export to its value."""
    loaded = view_files(ref).of
    with plain_files(ref).mapped() as stored:
        yield lambda name: stored(name) if name in loaded else torch.zeros_like(stored(name))


def _layout(plain: PreTrainedModel, files: TensorFiles, stored_tensor: Callable[[str], torch.Tensor]) -> Layout:
    """The stored tensors that make up the model, each in the type of the tensor that it becomes.

    Of tied weights that are stored twice, the one stays that loading expects.
    """
    types, expected = stored_types(plain), set(stored_names(plain))
    sources = sorted(find_sources(plain, files), key=lambda source: source.target not in expected)
    return {
        name: torch.empty(files.of[name].shape, dtype=types[source.target], device="meta")
        for source in check_ties(sources, plain, files, stored_tensor)
        for names in source.names.values()
        for name in names
    }


@torch.no_grad()
def verify_export(ref: ModelRef, directory: Path, dtype: str) -> None:
    """Compare a directory with the view that was written into it.

    Every stored tensor equals the view's, bit for bit, in the type that it is written in; what the view removes without
    a trace in the configuration is zero. By plain transformers, the
    directory has the logits that its weights give under the view's own configuration, and generates with the KV cache.

    Raises:
        ExportError: naming what differs.
    """
    plain, files = plain_model(ref, dtype), plain_files(ref)
    written = TensorFiles(str(directory), read_headers(str(directory)).of)
    with _exported_tensors(ref) as stored_tensor, written.mapped() as written_tensor:
        layout = _layout(plain, files, stored_tensor)
        if found := written.of.keys() ^ layout.keys():
            raise ExportError(f"{directory} lacks tensors of the view, or has others: {', '.join(sorted(found)[:3])}")
        for name, planned in layout.items():
            if not torch.equal(written_tensor(name), stored_tensor(name).to(planned.dtype)):
                raise ExportError(f"{directory} has another value of {name} than the view")
    AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    device_map = _with_blocks_on_disk(plain, set(find_blocks(plain))) if _stacks_experts(plain, written) else None
    with _reloaded(directory, dtype, view_config(ref), device_map) as model:
        expected = _probe(model)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with _reloaded(directory, dtype, config, device_map) as model:
        if not torch.equal(logits := _probe(model), expected):
            difference = (logits.float() - expected.float()).abs().max().item()
            raise ExportError(f"{directory} reloads with logits that differ by up to {difference}")
        check_generation(model)


def _stacks_experts(plain: PreTrainedModel, files: TensorFiles) -> bool:
    """Whether loading joins tensors of the files, which takes copies."""
    return any(source.converter is not None for source in find_sources(plain, files))


@contextmanager
def _reloaded(
    directory: Path, dtype: str, config: PretrainedConfig, device_map: Mapping[str, str] | None
) -> Iterator[PreTrainedModel]:
    """A model by plain transformers. Its weights lie where they are, mapped from the files; what `device_map` places on
    disk, and loading changes, is copied to a directory beside them meanwhile."""
    with tempfile.TemporaryDirectory(dir=directory) as copies:
        yield AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=DTYPES[dtype], trust_remote_code=False, device_map=device_map,
            offload_folder=copies,
        ).eval()  # fmt: skip


def _with_blocks_on_disk(module: nn.Module, blocks: set[nn.Module], name: str = "") -> dict[str, str]:
    """A `device_map` for a model whose experts are stacked when it is loaded, which takes copies: the modules that are
    blocks, and those that hold none."""
    if module in blocks:
        return {name: "disk"}
    if not blocks.intersection(module.modules()):
        return {name: "cpu"}
    found: dict[str, str] = {}
    for child, submodule in module.named_children():
        found |= _with_blocks_on_disk(submodule, blocks, f"{name}.{child}".removeprefix("."))
    return found


def probe_tokens(vocab_size: int) -> torch.Tensor:
    """A fixed input, [1, 16], for comparing a model before and after its export."""
    return torch.randint(vocab_size, (1, PROBE_LENGTH), generator=torch.Generator().manual_seed(0))


def _probe(model: PreTrainedModel) -> torch.Tensor:
    """Logits of `probe_tokens`, [1, 16, vocab]."""
    return model(input_ids=probe_tokens(model.config.vocab_size), use_cache=False).logits


def check_generation(model: PreTrainedModel) -> None:
    """Generate some tokens with the KV cache, whatever settings of generation the model has.

    Raises:
        ExportError: generation stops short.
    """
    tokens = probe_tokens(model.config.vocab_size).to(device_of(model))
    own, model.generation_config = model.generation_config, GenerationConfig()  # which others would be completed from
    try:
        with torch.inference_mode():
            generated = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=PROBE_NEW_TOKENS, do_sample=False,
                use_cache=True, pad_token_id=0,
            )  # fmt: skip
    finally:
        model.generation_config = own
    if generated.shape[1] != PROBE_LENGTH + PROBE_NEW_TOKENS:
        raise ExportError(
            f"{type(model).__name__} generated {generated.shape[1] - PROBE_LENGTH} tokens with the KV cache instead of "
            f"{PROBE_NEW_TOKENS}"
        )
