"""What one retraining run is."""

from collections.abc import Mapping
from dataclasses import dataclass

from shortened_llm.config import RetrainingConfig
from shortened_llm.fingerprint import canonical, fingerprint
from shortened_llm.records import ModelRef, Recipe, TokenMixture

STAGE_VERSION = 2
KIND = "retrained"
"""Of a `RetrainedModel` in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainingJob:
    """One model, one data set, one recipe."""

    model: ModelRef
    """The view to start from."""
    teacher: ModelRef | None
    """The model that a distillation follows."""
    tokens: TokenMixture
    validation: TokenMixture | None
    """Held-out sequences of the corpus's length; they change no weight."""
    recipe: Recipe
    dtype: str
    """Compute type. Master weights and optimiser state of what is trained are float32."""
    export_dtype: str
    """Type of the exported weights."""
    placement: RetrainingConfig
    """Read only for what changes no result: micro-batches, checkpoints, memory."""

    @property
    def identity(self) -> dict[str, object]:
        """Everything that changes the retrained weights, and nothing else."""
        return {
            "stage": STAGE_VERSION,
            "model": self.model.identity,
            "teacher": self.teacher.identity if self.teacher else None,
            "data": self.tokens.identity if self.recipe.num_steps else None,
            "recipe": self.recipe if self.recipe.num_steps else None,
            # The masks of dropout are drawn for each micro-batch.
            "micro_batch_size": self.placement.micro_batch_size if self._drops_out else None,
            "dtype": self.dtype,
            "export_dtype": self.export_dtype,
        }

    @property
    def _drops_out(self) -> bool:
        return self.recipe.lora is not None and self.recipe.lora.dropout > 0

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def run_name(self) -> str:
        """Of the Train run, and the same whenever it goes on: `cpt-24-blocks-lr-0.0003-seed-0-<fingerprint>`."""
        recipe, blocks = self.recipe, len(self.model.kept_blocks)
        return f"{recipe.method}-{blocks}-blocks-lr-{recipe.learning_rate:g}-seed-{recipe.seed}-{self.fingerprint}"

    @property
    def stable_fingerprint(self) -> str:
        """Of the part of a wsd run that every longer run shares."""
        return stable_fingerprint({**self.identity, "recipe": canonical(self.recipe)})

    @property
    def checkpoint_steps(self) -> int:
        """Optimiser steps between checkpoints."""
        tokens = self.placement.checkpoint_tokens or self.recipe.tokens // 3
        return max(1, tokens // self.recipe.tokens_per_step)


def stable_fingerprint(identity: Mapping[str, object]) -> str:
    """The same, from the identity of a run as it is stored."""
    recipe = identity["recipe"]
    assert isinstance(recipe, Mapping), "nothing was trained"
    shared = {**recipe, "num_steps": 0, "decay_steps": 0, "final_learning_rate_ratio": 0.0}
    return fingerprint({**identity, "recipe": shared, "part": "stable"})
