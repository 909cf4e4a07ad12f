"""From a sharded model to a plain Hugging Face directory on storage."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.models.build import DTYPES
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.export import ExportError, export_model, probe_tokens, verify_export
from shortened_llm.models.shards import plain_name, whole_tensor
from shortened_llm.models.view import empty_view
from shortened_llm.records import ModelRef, RetrainedModel
from shortened_llm.retraining.adapters import (
    adapted_layers,
    gathered_adapter,
    is_adapter,
    merged,
    save_adapter,
    verify_adapter,
)
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.progress import RunProgress
from shortened_llm.storage.layout import RETRAINED
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store

# Of two devices' bfloat16 logits, relative to their norm; a wrong or missing tensor is off by far more.
GATHERED_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export left on storage."""

    model: ModelRef
    adapter: ModelRef | None
    """Where the run trained adapters: these alone, which are merged in `model`."""


@torch.no_grad()
def export_sharded(model: PreTrainedModel, job: RetrainingJob, store: Store, *, rank: int) -> Exported | None:
    """Gather, write, verify and upload the model in the type that it is exported in. A collective; returns on rank 0.

    Raises:
        ExportError: the gathered model is not the sharded one, or what was written does not reload as it.
    """
    model.eval()
    tokens = probe_tokens(model.config.vocab_size).to(model.device)
    with torch.compiler.set_stance("force_eager"):  # compiling for one call takes longer than the call
        sharded_logits = model(input_ids=tokens, use_cache=False).logits.float().cpu()
    adapter = gathered_adapter(model) if job.recipe.lora else {}
    state = gathered_state(model, job.export_dtype, rank)
    if rank != 0:
        return None
    directory = model_directory(job.model)
    plain = empty_view(job.model)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.eval()
    logits = plain(input_ids=tokens.cpu(), use_cache=False).logits
    # Devices round differently; what was written must reload bit for bit, on one device.
    difference = (logits.float() - sharded_logits).norm() / sharded_logits.norm()
    if not difference < GATHERED_TOLERANCE:
        raise ExportError(f"run {job.fingerprint}: the gathered model's logits are off by {difference:.3g} (relative)")
    with temporary_directory() as temporary:
        export_model(plain, load_tokenizer(directory), Path(temporary))
        verify_export(Path(temporary), logits, job.export_dtype)
        exported = _upload(Path(temporary), job, store)
    if not adapter or job.recipe.lora is None:
        return Exported(model=exported, adapter=None)
    with temporary_directory() as temporary:
        save_adapter(adapter, job.recipe.lora, Path(temporary), base=_base_of_adapter(job.model))
        verify_adapter(empty_view(job.model), adapter, Path(temporary))
        return Exported(model=exported, adapter=_upload(Path(temporary), job, store))


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


def _upload(directory: Path, job: RetrainingJob, store: Store) -> ModelRef:
    url = store.attempt_url(RETRAINED, job.fingerprint)
    files = upload_directory(directory, url)
    return job.model.exported(url=url, fingerprint=job.fingerprint, files=files)


@torch.no_grad()
def gathered_state(model: nn.Module, dtype: str, rank: int) -> dict[str, torch.Tensor]:
    """The whole model on the CPU of rank 0, cast to `dtype`, by plain name, adapters merged; empty elsewhere. A
    collective.

    One tensor is gathered at a time, so rank 0 holds the model once, in `dtype`, and one tensor in its own type.
    """
    state: dict[str, torch.Tensor] = {}
    gathered: dict[int, torch.Tensor] = {}
    adapted = adapted_layers(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if is_adapter(name):
            continue
        if id(tensor) not in gathered:  # tied weights have two names
            whole = whole_tensor(tensor)
            if name.endswith(".base_layer.weight"):
                whole = merged(adapted[plain_name(name).removesuffix(".weight")], whole)
            kept = whole.to("cpu", DTYPES[dtype] if whole.is_floating_point() else whole.dtype)
            gathered[id(tensor)] = kept if rank == 0 else kept.new_empty(0)
        assert plain_name(name) not in state, f"two tensors would be exported as {plain_name(name)}"
        state[plain_name(name)] = gathered[id(tensor)]
    return state if rank == 0 else {}
