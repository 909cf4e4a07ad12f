"""Load a model, or a view of it, whole. A view is built from the tensors that it has, never cut out of a live model."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.models.build import DTYPES
from shortened_llm.models.directory import model_directory, set_generation_config
from shortened_llm.models.files import refuse_mismatched, refuse_missing, unjoinable_experts
from shortened_llm.models.view import change_modules, view_config, view_files
from shortened_llm.records import ModelRef


def load_model(ref: ModelRef, dtype: str, *, device: str | torch.device = "cpu", num_gpus: int = 1) -> PreTrainedModel:
    """The model of `ref`, in evaluation mode.

    The tensors are those of the view, under its names; transformers then applies its own conversion from disk to
    memory. `layer_idx`, and with it the KV cache, comes out right because the model is built from the view's
    configuration. To a GPU tensors go one by one, so that the host never holds the model.

    Args:
        num_gpus: with more than one, blocks are spread over the first so many GPUs, each whole on one of them, and
            what a block reads is moved to it (accelerate); `device` is the kind.

    Raises:
        BadInputError: the files are damaged or lack a tensor of the model.
        RuntimeError: the weights do not fit on the GPUs.
    """
    config, files = view_config(ref), view_files(ref)
    model_class = _changed(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], ref)
    try:
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(files.read(files.of)),
            dtype=DTYPES[dtype],
            ignore_mismatched_sizes=True,  # They are refused below, by name.
            output_loading_info=True,
            **_placement(torch.device(device), num_gpus),
        )
    except ValueError as error:
        if "offload" not in str(error):
            raise
        raise RuntimeError(f"the weights do not fit in the free memory of {num_gpus} GPUs") from None
    except RuntimeError as error:
        if "conversion" not in str(error):
            raise
        raise unjoinable_experts(files.place) from None
    # What transformers would fill with random numbers; a tied head is not among it.
    refuse_missing(files, report["missing_keys"])
    refuse_mismatched(files, report["mismatched_keys"])
    set_generation_config(model, model_directory(ref))
    return model.eval()


def _changed(model_class: type[PreTrainedModel], ref: ModelRef) -> type[PreTrainedModel]:
    """A class whose models come with the modules of the view, for transformers builds the model that it fills."""

    def build(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        change_modules(self, ref.transforms, ref.num_blocks)

    return type(model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__})


def loaded_bytes(ref: ModelRef, dtype: str) -> int:
    """Bytes of the weights, as they will be loaded."""
    return sum(map(math.prod, view_files(ref).shapes.values())) * DTYPES[dtype].itemsize


def _placement(device: torch.device, num_gpus: int) -> dict[str, Any]:
    """Where transformers puts the weights."""
    if device.type == "cpu":
        return {}
    if num_gpus == 1:
        return {"device_map": {"": device}}
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in range(num_gpus)}
    return {"device_map": "balanced", "max_memory": free}  # without the CPU, which would take what is left over
