"""What one retraining run is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shortened_llm.config import RetrainingConfig
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import ModelRef, Recipe, RetrainedModel, TokenMixture
from shortened_llm.storage.layout import RETRAINED
from shortened_llm.storage.payload import has_files
from shortened_llm.storage.store import Store

STAGE_VERSION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run by what determines it, known before the model that it begins with has been made."""

    identity: dict[str, object]
    """Everything that changes the retrained weights, and nothing else."""
    recipe: Recipe

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def begins(self) -> Mapping[str, object]:
        """Identity of the model that it begins with."""
        model = self.identity["model"]
        assert isinstance(model, Mapping)
        return model

    @property
    def name(self) -> str:
        """The name of the Train run, whenever it goes on: `cpt-lr-0.0003-seed-0-<fingerprint>`."""
        recipe = self.recipe
        return f"{recipe.method}-lr-{recipe.learning_rate:g}-seed-{recipe.seed}-{self.fingerprint}"

    @property
    def stable_fingerprint(self) -> str:
        """The fingerprint of the part of a wsd run that every longer run shares."""
        shared = replace(self.recipe, num_steps=0, decay_steps=0, final_learning_rate_ratio=0.0)
        return fingerprint({**self.identity, "recipe": shared, "part": "stable"})

    def after(self, earlier: "Run", removed: int = 0, way: str | None = None) -> "Run":
        """The run that begins with the model that an earlier run makes.

        Args:
            removed: units (count) that this model loses first.
            way: what says how they are chosen.
        """
        model: dict[str, object] = {"files": earlier.fingerprint, "transforms": ()}
        if removed:
            model["removed"] = {"count": removed, "way": way}
        return replace(self, identity={**self.identity, "model": model})


def is_retrained(run: Run, store: Store) -> bool:
    """Whether the model that a run makes is stored, with its files."""
    known = store.read(RETRAINED, run.fingerprint, RetrainedModel)
    return known is not None and all(map(has_files, known.model.payloads))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainingJob:
    """One model, one data set, one recipe."""

    model: ModelRef
    """The view to start from."""
    begins: Mapping[str, object] | None = None
    """Identity of that view where it was known before the view was made: see `Run.after`."""
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
    def run(self) -> Run:
        """What determines the retrained weights."""
        identity = {
            "stage": STAGE_VERSION,
            "model": self.begins or self.model.identity,
            "teacher": self.teacher.identity if self.teacher else None,
            "data": self.tokens.identity,
            "recipe": self.recipe,
            # The masks of dropout are drawn for each micro-batch.
            "micro_batch_size": self.placement.micro_batch_size if self._drops_out else None,
            "dtype": self.dtype,
            "export_dtype": self.export_dtype,
        }
        return Run(identity=identity, recipe=self.recipe)

    @property
    def fingerprint(self) -> str:
        return self.run.fingerprint

    @property
    def parents(self) -> tuple[str, ...]:
        """Fingerprints of the results that the run needs."""
        data = [part.fingerprint for mixture in (self.tokens, self.validation) if mixture for part in mixture.parts]
        models = [name for ref in (self.model, self.teacher) if ref for name in ref.parents]
        return (*models, *data, self.run.stable_fingerprint)

    @property
    def _drops_out(self) -> bool:
        return self.recipe.lora is not None and self.recipe.lora.dropout > 0

    @property
    def checkpoint_steps(self) -> int:
        """Optimiser steps between checkpoints."""
        tokens = self.placement.checkpoint_tokens or self.recipe.tokens // 3
        return max(1, tokens // self.recipe.tokens_per_step)
