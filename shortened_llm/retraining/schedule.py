"""The learning rate as a function of the step."""

import math

from shortened_llm.config import CptConfig


def learning_rate_factor(step: int, num_steps: int, config: CptConfig) -> float:
    """Learning rate of optimiser step `step` (from 0) / peak: a linear warm-up, then a cosine to the final ratio."""
    warmup = round(config.warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    floor = config.final_learning_rate_ratio
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
