"""What a run reads: its batches, on the device, with what keeps their documents apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from shortened_llm.data.batches import MicroBatch, TrainingStream, validation_batches
from shortened_llm.models.build import DTYPES
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.head import Documents
from shortened_llm.models.isolation import choose_isolation, document_inputs
from shortened_llm.records import Recipe
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.loaded import evaluating

KeepApart = Callable[[torch.Tensor], Documents]
"""From position ids, [batch, seq], to what keeps the documents of a sequence apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """This worker's batches."""

    stream: TrainingStream
    validation: tuple[MicroBatch, ...]
    """On the device already; empty where nothing is held out."""
    place: Callable[[MicroBatch], MicroBatch]
    """Puts a batch on the device."""


def open_inputs(job: RetrainingJob, device: torch.device, keep_apart: KeepApart | None) -> Inputs:
    """The batches of this worker; `keep_apart` is given where documents must not attend to one another."""
    rank, world_size, size = dist.get_rank(), dist.get_world_size(), job.placement.micro_batch_size
    end_of_text = load_tokenizer(model_directory(job.model)).eos_token_id if job.recipe.isolate_documents else None

    def place(batch: MicroBatch) -> MicroBatch:
        return _placed(batch, device, keep_apart)

    held_out: list[MicroBatch] = []
    if job.validation is not None and job.placement.validation_sequences:
        count = job.placement.validation_sequences
        held_out = validation_batches(job.validation, count, size, rank, world_size, end_of_text=end_of_text)
    stream = TrainingStream(
        job.tokens, job.recipe, micro_batch_size=size, rank=rank, world_size=world_size, end_of_text=end_of_text
    )
    return Inputs(stream=stream, validation=tuple(map(place, held_out)), place=place)


def keeps_apart(model: PreTrainedModel, recipe: Recipe, dtype: str) -> KeepApart | None:
    """None where a recipe lets documents attend to one another; raises as `isolation.choose_isolation`."""
    if not recipe.isolate_documents:
        return None
    config, isolation = model.config, choose_isolation(model.config)
    return lambda position_ids: document_inputs(position_ids, isolation, config, DTYPES[dtype])


@torch.no_grad()
def validation_loss(model: PreTrainedModel, batches: Sequence[MicroBatch]) -> float | None:
    """Mean cross-entropy over the validation sequences, nats per prediction; None without any. A collective."""
    if not batches:
        return None
    sums = torch.zeros(2, dtype=torch.float64, device=batches[0].input_ids.device)
    with evaluating(model):
        for batch in batches:
            sums[0] += model.sequence_nll(batch.input_ids, batch.labels, batch.documents).double().sum()
            sums[1] += (batch.labels >= 0).sum()
        dist.all_reduce(sums)
    return float(sums[0] / sums[1])


def _placed(batch: MicroBatch, device: torch.device, keep_apart: KeepApart | None) -> MicroBatch:
    """The batch on the device, with what keeps its documents apart."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    placed = replace(batch, input_ids=move(batch.input_ids), labels=move(batch.labels))
    if keep_apart is None or batch.position_ids is None:
        return placed
    return replace(placed, documents=keep_apart(move(batch.position_ids)))
