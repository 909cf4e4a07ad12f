"""From a sharded model to a plain Hugging Face directory on storage."""

import tempfile
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from shortened_llm.models.export import ExportError, export_model, probe_tokens, verify_export
from shortened_llm.models.load import DTYPES, empty_model, load_tokenizer, model_directory
from shortened_llm.records import ModelRef
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.store import Store

KIND = "retrained"
# Of two devices' bfloat16 logits, relative to their norm; a wrong or missing tensor is off by far more.
GATHERED_TOLERANCE = 0.05


@torch.no_grad()
def export_sharded(model: PreTrainedModel, job: RetrainingJob, store: Store, *, rank: int) -> ModelRef | None:
    """Gather, write, verify and upload the model in the job's dtype. A collective; returns the model on rank 0.

    Raises:
        ExportError: the gathered model is not the sharded one, or what was written does not reload as it.
    """
    model.eval()
    tokens = probe_tokens(model.config.vocab_size).to(model.device)
    sharded_logits = model(input_ids=tokens, use_cache=False).logits.float().cpu()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank != 0:
        return None
    plain = empty_model(model.config)
    tensors = {name: tensor.to(DTYPES[job.dtype]) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    plain.load_state_dict(tensors, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.eval()
    logits = plain(input_ids=tokens.cpu(), use_cache=False).logits
    # Devices round differently; what was written must reload bit for bit, on one device.
    difference = (logits.float() - sharded_logits).norm() / sharded_logits.norm()
    if not difference < GATHERED_TOLERANCE:
        raise ExportError(f"run {job.fingerprint}: the gathered model's logits are off by {difference:.3g} (relative)")
    with tempfile.TemporaryDirectory(prefix="shortened_llm_export_") as temporary:
        export_model(plain, load_tokenizer(model_directory(job.model)), Path(temporary))
        verify_export(Path(temporary), logits, job.dtype)
        url = store.attempt_url(KIND, job.fingerprint)
        files = upload_directory(Path(temporary), url)
    return ModelRef(url=url, fingerprint=job.fingerprint, files=files, num_blocks=len(job.model.kept_blocks))
