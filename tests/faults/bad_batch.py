"""A fault in the training processes of a cluster: the loss of step 51 is NaN."""

import math
from typing import Any

from shortened_llm.retraining import loop

BAD_CALL = 51


def install() -> None:
    """Ray calls it at the start of each worker process."""
    step, calls = loop.train_step, [0]

    def step_with_a_bad_batch(model: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] != BAD_CALL:
            return step(model, *arguments, **options)
        loss = model.training_loss
        model.training_loss = lambda *tensors, **how: loss(*tensors, **how) * math.nan
        try:
            return step(model, *arguments, **options)
        finally:
            model.training_loss = loss

    loop.train_step = step_with_a_bad_batch  # type: ignore[assignment]
