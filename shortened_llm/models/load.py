"""Load a model, or a view of it, whole. A view is built from the tensors that it has, never cut out of a live model."""

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.models.build import DTYPES
from shortened_llm.models.directory import model_directory, set_generation_config
from shortened_llm.models.files import refuse_mismatched, refuse_missing, unjoinable_experts
from shortened_llm.models.view import view_config, view_files
from shortened_llm.records import ModelRef


def load_model(ref: ModelRef, dtype: str, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model of `ref`, in evaluation mode.

    The tensors are those of the view, under its names; transformers then applies its own conversion from disk to
    memory. `layer_idx`, and with it the KV cache, comes out right because the model is built from the view's
    configuration.

    Raises:
        BadInputError: the files are damaged or lack a tensor of the model.
    """
    config, files = view_config(ref), view_files(ref)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(files.read(files.of)),
            dtype=DTYPES[dtype],
            ignore_mismatched_sizes=True,  # They are refused below, by name.
            output_loading_info=True,
        )
    except RuntimeError as error:
        if "conversion" not in str(error):
            raise
        raise unjoinable_experts(files.place) from None
    # What transformers would fill with random numbers; a tied head is not among it.
    refuse_missing(files, report["missing_keys"])
    refuse_mismatched(files, report["mismatched_keys"])
    set_generation_config(model, model_directory(ref))
    return model.to(device).eval()
