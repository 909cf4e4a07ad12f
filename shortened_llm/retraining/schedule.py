"""The learning rate as a function of the step."""

import math

from shortened_llm.records import Recipe


def learning_rate(step: int, recipe: Recipe) -> float:
    """Learning rate of optimiser step `step` (from 0).

    A linear warm-up; then wsd stays at the peak until `decay_steps` before the end and falls in a line, while cosine
    and linear begin to fall at once. The last step is one step short of the final ratio.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / (recipe.warmup_steps + 1)
    start = stable_end(recipe) if recipe.schedule == "wsd" else recipe.warmup_steps
    progress = max(0.0, (step - start) / max(1, recipe.num_steps - start))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if recipe.schedule == "cosine" else 1 - progress
    floor = recipe.final_learning_rate_ratio
    return recipe.learning_rate * (floor + (1 - floor) * left)


def stable_end(recipe: Recipe) -> int:
    """Steps before the decay of a wsd schedule: up to here a run is the beginning of every longer one. 0 for the other
    schedules, which depend on the run's length from the start."""
    return 0 if recipe.schedule != "wsd" else max(recipe.warmup_steps, recipe.num_steps - recipe.decay_steps)
