"""From a sharded model to a plain Hugging Face directory on storage."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.export import ExportError, check_generation, probe_tokens
from shortened_llm.models.shards import device_of, plain_name, whole_tensor
from shortened_llm.models.view import empty_view, plain_model
from shortened_llm.models.write import (
    WeightWriter,
    stored_form,
    stored_layout,
    stored_names,
    stored_types,
    write_settings,
)
from shortened_llm.records import FileEntry, ModelRef, RetrainedModel
from shortened_llm.retraining.adapters import (
    adapted_layers,
    gathered_adapter,
    is_adapter,
    merged,
    save_adapter,
    verify_adapter,
)
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.prepare import freeze
from shortened_llm.retraining.progress import RunProgress
from shortened_llm.retraining.sharding import make_mesh, open_sharded
from shortened_llm.retraining.zeros import holds_zeros
from shortened_llm.storage.layout import RETRAINED
from shortened_llm.storage.payload import upload, upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store

# Of logits after rounding weights to the exported type, or merging adapters in it, relative to their norm; a wrong or
# missing tensor is off by far more.
ROUNDING_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export left on storage."""

    model: ModelRef
    adapter: ModelRef | None
    """Where the run trained adapters of a model that has no single weights pruned: these alone, which are merged in
    `model`."""


@torch.no_grad()
def export_sharded(model: PreTrainedModel, job: RetrainingJob, store: Store, *, rank: int) -> Exported | None:
    """Write, upload and verify the model in the type that it is exported in. A collective; returns on rank 0.

    No process ever holds more of it than its shards and one tensor: see `models/write.py`. What was uploaded
    is read back into shards of the same workers.

    Raises:
        ExportError: what was written does not load as the model that was trained.
    """
    logits = probe_logits(_frugal(model))
    # Beside the zeros of a sparse model, adapters that peft reads would be others than those that were trained.
    adapter = gathered_adapter(model) if job.recipe.lora and not holds_zeros(job.model) else {}
    exported = _shared(_write(model, job, store, rank))
    _verify(exported, logits, job, device_of(model))
    if rank != 0:
        return None
    if not adapter or job.recipe.lora is None:
        return Exported(model=exported, adapter=None)
    with temporary_directory() as temporary:
        directory = Path(temporary)
        save_adapter(adapter, job.recipe.lora, directory, base=_base_of_adapter(job.model))
        verify_adapter(empty_view(job.model), adapter, directory)
        url = store.attempt_url(RETRAINED, job.fingerprint)
        files = upload_directory(directory, url)
        return Exported(model=exported, adapter=_reference(job, url, files))


def _write(model: PreTrainedModel, job: RetrainingJob, store: Store, rank: int) -> ModelRef | None:
    """Gather tensor by tensor; on rank 0 each file is uploaded while the next is gathered, then deleted here."""
    plain, held = plain_model(job.model, job.export_dtype), empty_view(job.model).state_dict().keys()
    names = stored_names(plain)
    tensors = gathered(model, [name for name in names if name in held], holds_zeros=holds_zeros(job.model))
    if rank != 0:
        for _, tensor in tensors:
            if tensor.is_cuda:  # else gathers queue up behind the uploads of rank 0, until they time out
                torch.cuda.synchronize()
        return None
    url = store.attempt_url(RETRAINED, job.fingerprint)
    types = stored_types(plain)
    with temporary_directory() as temporary, ThreadPoolExecutor(1) as uploads:
        directory, files = Path(temporary), list[Future[FileEntry]]()

        def hand_on(path: Path) -> None:
            if files:
                files[-1].result()  # one file waits at a time
            files.append(uploads.submit(_move, path, url))

        writer = WeightWriter(stored_layout(plain), directory, hand_on)
        shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
        for name in names:
            tensor = next(tensors)[1] if name in held else torch.zeros(shapes[name])
            for stored, value in stored_form(plain, name, tensor.to("cpu", types[name])).items():
                writer.add(stored, value)
        writer.close()
        plain.generation_config = model.generation_config
        write_settings(plain, job.export_dtype, directory)
        load_tokenizer(model_directory(job.model)).save_pretrained(directory)
        entries = [one.result() for one in files]
        entries += upload_directory(directory, url)
    return _reference(job, url, tuple(sorted(entries, key=lambda entry: entry.path)))


def _move(path: Path, url: str) -> FileEntry:
    entry = upload(path, url)
    path.unlink()
    return entry


def _shared(exported: ModelRef | None) -> ModelRef:
    """What rank 0 wrote, on every rank."""
    found = [exported]
    dist.broadcast_object_list(found, src=0)
    assert found[0] is not None, "rank 0 writes"
    return found[0]


def _verify(exported: ModelRef, logits: torch.Tensor, job: RetrainingJob, device: torch.device) -> None:
    """Read the model back into shards: the same logits, on CPU bit for bit where all weights are exported in the type
    that is computed in; and generation with the KV cache."""
    mesh = make_mesh(device, dist.get_world_size(), None)
    placement = job.placement.model_copy(update={"compile": False})
    reloaded = open_sharded(
        exported, mesh, job.dtype, placement, device=device, sequence_length=job.recipe.sequence_length,
        prepare=partial(freeze, dtype=job.dtype),
    )  # fmt: skip
    found = probe_logits(_frugal(reloaded))
    # An accelerator may choose other kernels for the same product.
    is_exact = job.export_dtype == job.dtype and job.recipe.lora is None and device.type == "cpu"
    difference = (found - logits).norm() / logits.norm()
    if not (torch.equal(found, logits) if is_exact else difference < ROUNDING_TOLERANCE):
        raise ExportError(f"run {job.fingerprint}: what was written is off by {difference:.3g} (relative, of logits)")
    check_generation(reloaded)


def _frugal(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode, of which no more than a block is ever gathered: no backward pass will need it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(True, recurse=False)
    return model.eval()


def probe_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a fixed input, float32, where the model computes. A collective where it is sharded."""
    tokens = probe_tokens(model.config.vocab_size).to(device_of(model))
    with torch.compiler.set_stance("force_eager"):  # compiling for one call takes longer than the call
        return model(input_ids=tokens, use_cache=False).logits.float()


def _base_of_adapter(model: ModelRef) -> str:
    """The model that adapters belong to, for people: files where it has some of its own, else how to make it."""
    changes = [transform.describe(model.num_blocks) for transform in model.transforms]
    return " ".join((model.url, *changes))


def write_run(job: RetrainingJob, exported: Exported, progress: RunProgress, store: Store) -> None:
    """Write the record of what a run hands on."""
    record = RetrainedModel(
        model=exported.model,
        adapter=exported.adapter,
        tokens=progress.tokens,
        seconds=progress.seconds,
        accelerator_seconds=progress.accelerator_seconds,
        history=progress.history,
        skipped_steps=progress.skipped_steps,
        loss_spikes=progress.loss_spikes,
        first_validation_loss=progress.first_validation_loss,
    )
    store.write(RETRAINED, job.fingerprint, record, identity=job.run.identity, parents=job.parents)


def _reference(job: RetrainingJob, url: str, files: tuple[FileEntry, ...]) -> ModelRef:
    return job.model.exported(url=url, fingerprint=job.fingerprint, files=files)


@torch.no_grad()
def gathered(
    model: nn.Module, names: Sequence[str], *, holds_zeros: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each of the named tensors, whole, adapters merged, one after another: (plain name, tensor). A collective, in
    which every process must take all of them.

    Args:
        holds_zeros: whether what is zero beside an adapter stays so.
    """
    tensors = {plain_name(n): (n, t) for n, t in model.state_dict(keep_vars=True).items() if not is_adapter(n)}
    adapted = adapted_layers(model)
    for wanted in names:
        name, tensor = tensors[wanted]
        whole = whole_tensor(tensor)
        if name.endswith(".base_layer.weight"):
            whole = merged(adapted[wanted.removesuffix(".weight")], whole, holds_zeros=holds_zeros)
        yield wanted, whole
