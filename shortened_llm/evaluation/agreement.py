"""How far a model predicts what the dense model predicts, without both in memory at a time."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.evaluation.perplexity import Segments, protocol
from shortened_llm.models.head import CHUNK_TOKENS, final_hidden, finished_logits, head_logits
from shortened_llm.records import AgreementScore

STAGE_VERSION = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseStates:
    """What the dense model predicts of a text, as what its head reads: its logits are [vocab / hidden] times larger."""

    config: PreTrainedConfig
    hidden: torch.Tensor
    """Final hidden states of each prediction, [predictions, hidden], mapped from a file."""
    head: tuple[torch.Tensor, ...]
    """Weight of the head, and its bias where it has one, mapped from files."""

    @classmethod
    @torch.inference_mode()
    def write(cls, dense: PreTrainedModel, segments: Segments, directory: Path, *, batch_size: int) -> "DenseStates":
        """Run the dense model over a text and keep what it finds in files of its own type, of a size that memory need
        not hold."""
        module = dense.get_output_embeddings()
        weights = [weight for weight in (module.weight, getattr(module, "bias", None)) if weight is not None]
        head = tuple(_mapped(directory / f"head-{i}", weight.shape, weight.dtype) for i, weight in enumerate(weights))
        for stored, weight in zip(head, weights, strict=True):
            stored.copy_(weight)
        shape = torch.Size((int(segments.predicted.sum()), weights[0].shape[1]))
        hidden, start = _mapped(directory / "hidden", shape, weights[0].dtype), 0
        for batch, asked in zip(segments.tokens.split(batch_size), segments.predicted.split(batch_size), strict=True):
            found = _asked_states(dense, batch, asked)
            hidden[start : start + len(found)] = found
            start += len(found)
        return cls(config=dense.config, hidden=hidden, head=head)


def _mapped(path: Path, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that lies in a new file.

    Raises:
        OSError: the disk has no room for it. Found out later, while it is filled, that would end the process.
    """
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shape.numel() * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=shape.numel(), dtype=dtype).view(shape)


def _asked_states(model: PreTrainedModel, tokens: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Final hidden states [predictions, hidden] of what is predicted of tokens [batch, seq]."""
    hidden = final_hidden(model, tokens.to(model.device))[:, :-1]
    return hidden.flatten(0, 1)[asked.flatten().to(hidden.device)]


@torch.inference_mode()
def measure_agreement(
    model: PreTrainedModel,
    dense: DenseStates,
    segments: Segments,
    documents: Documents,
    source: PerplexitySource,
    *,
    batch_size: int,
) -> AgreementScore:
    """Mean KL(dense ‖ model) in nats, and the share of equal most likely tokens, over the predictions of a text.

    Beside the model, the head of the dense model is in memory, and one chunk of the logits of each.

    Args:
        dense: of the same segments.

    Raises:
        NonFiniteLossError: the mean is NaN or infinite.
    """
    device = model.get_output_embeddings().weight.device
    head = [weight.to(device) for weight in dense.head]
    kl = torch.zeros((), dtype=torch.float64)
    agreed = start = 0
    for batch, asked in zip(segments.tokens.split(batch_size), segments.predicted.split(batch_size), strict=True):
        own = _asked_states(model, batch, asked)
        of_dense = dense.hidden[start : start + len(own)]
        start += len(own)
        for theirs, states in zip(of_dense.split(CHUNK_TOKENS), own.split(CHUNK_TOKENS), strict=True):
            reference = finished_logits(dense.config, F.linear(theirs.to(device), *head)).log_softmax(-1)
            predicted = head_logits(model, states.to(device)).log_softmax(-1)
            kl += (reference.exp() * (reference - predicted)).sum(-1).double().sum().cpu()
            agreed += int((reference.argmax(-1) == predicted.argmax(-1)).sum())
    count = int(segments.predicted.sum())
    mean = kl.item() / count
    if not math.isfinite(mean):
        raise NonFiniteLossError(f"agreement on {source.label}: mean divergence is {mean}")
    return AgreementScore(
        unit="",  # set by `store_score`
        source=source.label,
        protocol=protocol(documents, source),
        kl=mean,
        top1=agreed / count,
        num_predictions=count,
        notes=segments.notes,
    )
