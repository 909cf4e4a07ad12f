"""Calibration sequences in the tokens of a model."""

import torch

from shortened_llm.config import CalibrationConfig
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.sources import Documents
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.families import needs_bos
from shortened_llm.models.stream import StreamedModel
from shortened_llm.records import ModelRef


def model_tokens(
    ref: ModelRef, streamed: StreamedModel, documents: Documents, calibration: CalibrationConfig
) -> torch.Tensor:
    """Token ids, [sequences, length], in CPU memory; raises as `calibration_tokens`."""
    return calibration_tokens(
        documents,
        calibration,
        load_tokenizer(model_directory(ref)),
        vocab_size=len(streamed.model.get_input_embeddings().weight),
        bos=needs_bos(calibration.bos, streamed.model.config.model_type),
    )
