"""The discrete search space: one trial per distinct (plan, retraining)."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from shortened_llm.config import RetrainingConfig
from shortened_llm.evaluation.evaluate import Unit
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import ModelRef, PrunePlan, TokenDataset, TrialSpec
from shortened_llm.retraining.job import RetrainingJob


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What all trials of a search share."""

    dense: ModelRef
    tokens: TokenDataset
    retraining: RetrainingConfig
    selection: tuple[Unit, ...]
    dtype: str

    def job(self, plan: PrunePlan, method: str, learning_rate: float) -> RetrainingJob:
        """The retraining of one plan."""
        return RetrainingJob(
            model=self.dense.view(plan.kept_blocks),
            tokens=self.tokens,
            config=self.retraining,
            method=method,
            learning_rate=learning_rate,
            dtype=self.dtype,
        )

    def trials(self, plans: Iterable[PrunePlan]) -> tuple[TrialSpec, ...]:
        """Every plan with every method and learning rate."""
        return tuple(
            TrialSpec(
                fingerprint=fingerprint(self.trial_identity(self.job(plan, method, learning_rate))),
                plan=plan,
                method=method,
                learning_rate=learning_rate,
            )
            for plan, method, learning_rate in product(
                plans, self.retraining.methods, self.retraining.cpt.learning_rate
            )
        )

    def trial_identity(self, job: RetrainingJob) -> dict[str, object]:
        """What determines a trial's result."""
        return {"retraining": job.identity, "selection": [unit.identity for unit in self.selection]}
