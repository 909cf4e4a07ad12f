"""How far a model predicts what the dense model predicts."""

import math

import torch
from transformers import PreTrainedModel

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.evaluation.perplexity import Segments, protocol
from shortened_llm.models.head import CHUNK_TOKENS, final_hidden, head_logits
from shortened_llm.records import AgreementScore

STAGE_VERSION = 4


@torch.inference_mode()
def measure_agreement(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    segments: Segments,
    documents: Documents,
    source: PerplexitySource,
    *,
    batch_size: int,
) -> AgreementScore:
    """Mean KL(dense ‖ model) in nats, and the share of equal most likely tokens, over the predictions of a text.

    Both models are in memory; of their logits, one chunk each.

    Raises:
        NonFiniteLossError: the mean is NaN or infinite.
    """
    kl = torch.zeros((), dtype=torch.float64)
    agreed = 0
    for batch, asked in zip(segments.tokens.split(batch_size), segments.predicted.split(batch_size), strict=True):
        inputs = batch.to(model.device)
        hidden = [final_hidden(one, inputs)[:, :-1].flatten(0, 1)[asked.flatten()] for one in (dense, model)]
        for of_dense, of_model in zip(*(states.split(CHUNK_TOKENS) for states in hidden), strict=True):
            reference = head_logits(dense, of_dense).log_softmax(-1)
            predicted = head_logits(model, of_model).log_softmax(-1)
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
