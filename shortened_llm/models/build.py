"""Build a model without weights."""

import torch
from accelerate import init_empty_weights
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import local_torch_dtype
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def empty_model(config: PretrainedConfig, dtype: str = "float32") -> PreTrainedModel:
    """A model without weights: parameters on the meta device, buffers real, since rotary frequencies are not stored."""
    with local_torch_dtype(DTYPES[dtype]), init_empty_weights(include_buffers=False):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.tie_weights()  # what goes to the meta device one parameter at a time comes apart
    return model
