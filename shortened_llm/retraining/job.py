"""What one retraining run is."""

from dataclasses import dataclass

from shortened_llm.config import RetrainingConfig
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import ModelRef, TokenDataset

STAGE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainingJob:
    """One model, one data set, one recipe."""

    model: ModelRef
    """The view to start from."""
    tokens: TokenDataset
    config: RetrainingConfig
    method: str
    learning_rate: float
    """Peak learning rate of this run: one of the config's."""
    dtype: str
    """Compute type; master weights and optimiser state are float32."""

    @property
    def identity(self) -> dict[str, object]:
        """Everything that changes the retrained weights, and nothing else."""
        recipe = self.config.cpt.model_dump()
        recipe["learning_rate"] = self.learning_rate
        return {
            "stage": STAGE_VERSION,
            "model": self.model.identity,
            "data": self.tokens.fingerprint,
            "method": self.method,
            "recipe": recipe,
            "steps": self.config.num_steps,
            "global_batch_size": self.config.global_batch_size,
            "sequence_length": self.config.sequence_length,
            "seed": self.config.seed,
            "dtype": self.dtype,
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)
