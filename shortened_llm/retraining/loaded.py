"""What is checked of a loaded, sharded model before a step is spent on it."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from shortened_llm.models.head import Documents, check_head
from shortened_llm.models.isolation import check_isolation
from shortened_llm.retraining.adapters import check_neutral


def check_loaded(model: PreTrainedModel, keep_apart: Callable[[torch.Tensor], Documents] | None) -> None:
    """Check that losses are the family's own, that documents stay apart where they must, and that adapters begin by
    changing nothing. A collective; no result depends on it.

    Args:
        model: from `sharding.open_sharded`.
        keep_apart: from position ids to what keeps documents apart, where they must be.

    Raises:
        BadInputError: naming the family, and the field where there is one.
    """
    with evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        check_head(model, lambda _, tokens: model.final_hidden(tokens))
        if keep_apart is not None:
            check_isolation(model, lambda tokens, position_ids: model.final_hidden(tokens, keep_apart(position_ids)))
        check_neutral(model)


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode. What no backward pass follows would stay gathered, so it is sharded again."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        model.train(was_training)
