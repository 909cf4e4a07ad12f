"""What is to be scored, and the units of work that measure it."""

import importlib.metadata
from dataclasses import dataclass, replace
from itertools import pairwise

from shortened_llm.config import (
    TEXTLESS_CRITERIA,
    CalibrationConfig,
    Criterion,
    ScoringConfig,
    SearchConfig,
)
from shortened_llm.data.calibration import STAGE_VERSION as CALIBRATION_VERSION
from shortened_llm.data.sources import Documents
from shortened_llm.records import ModelRef
from shortened_llm.scoring import angular_span, block_influence, kl, ppl

STAGE_VERSION = 2
# Forward-only criteria and the statistic of the shared walk that each reduces.
WALKED: dict[Criterion, str] = {
    "ppl": ppl.STATISTIC,
    "kl": kl.STATISTIC,
    "block_influence": block_influence.STATISTIC,
    "angular_span": angular_span.STATISTIC,
}
# Nothing to measure.
FREE: tuple[Criterion, ...] = ("last_n", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """A model, the text it is scored on, and the cuts that the scores are for."""

    model: ModelRef
    documents: Documents | None
    """Where a criterion reads text."""
    calibration: CalibrationConfig
    scoring: ScoringConfig
    counts: tuple[int, ...]
    """Numbers of blocks that plans will remove, ascending. Only greedy_ppl depends on them."""

    @classmethod
    def of(
        cls, config: SearchConfig, model: ModelRef, documents: Documents | None, counts: tuple[int, ...]
    ) -> "ScoringJob":
        """What a configuration asks for."""
        return cls(
            model=model, documents=documents, calibration=config.calibration, scoring=config.scoring, counts=counts
        )

    @property
    def num_blocks(self) -> int:
        return len(self.model.kept_blocks)

    @property
    def protected(self) -> tuple[int, ...]:
        return protected_blocks(self.scoring, self.num_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One piece of work: statistics that one task measures, on a range of the calibration sequences of one draw."""

    statistics: tuple[str, ...]
    """Of one walk (`one_pass`), or the name of one criterion that measures for itself."""
    draw: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """A short name for logs, such as `nll+kl` or `taylor (draw 1)`."""
        draw = f" (draw {self.draw})" if self.draw else ""
        shard = f" [{self.start}:{self.stop}]" if self.start else ""
        return "+".join(self.statistics) + draw + shard


def protected_blocks(scoring: ScoringConfig, num_blocks: int) -> tuple[int, ...]:
    """Blocks that no plan removes: the first and the last ones, as configured."""
    last = range(max(0, num_blocks - scoring.protect_last), num_blocks)
    return tuple(sorted({*range(min(scoring.protect_first, num_blocks)), *last}))


def draws(criterion: Criterion, job: ScoringJob) -> range:
    """The draws of calibration text that the criterion is measured on."""
    return range(job.calibration.draws if criterion not in TEXTLESS_CRITERIA else 1)


def unit_of(criterion: Criterion, job: ScoringJob, draw: int = 0) -> Unit:
    """The unit that holds all that a criterion reduces, over the whole calibration set."""
    statistic = WALKED.get(criterion, criterion)
    stop = 0 if criterion == "magnitude" else job.calibration.num_sequences
    return Unit(statistics=(statistic,), draw=draw, start=0, stop=stop)


def shards(unit: Unit, number: int) -> tuple[Unit, ...]:
    """The unit cut into up to `number` ranges of sequences, in order and of nearly equal size."""
    size = unit.stop - unit.start
    edges = [unit.start + size * index // number for index in range(number + 1)]
    return tuple(replace(unit, start=start, stop=stop) for start, stop in pairwise(edges) if stop > start)


def identity(unit: Unit, job: ScoringJob) -> dict[str, object]:
    """Everything that a measurement's numbers depend on; for a unit with one statistic."""
    (statistic,) = unit.statistics
    calibration = job.calibration
    options = {"taylor": job.scoring.taylor, "magnitude": job.scoring.magnitude}.get(statistic)
    text = {
        "stage": CALIBRATION_VERSION,
        "documents": job.documents.identity if job.documents else None,
        # Where later draws begin among rows of token ids.
        "num_sequences": calibration.num_sequences if unit.draw else None,
        "sequence_length": calibration.sequence_length,
        "seed": calibration.seed,
        "draw": unit.draw,
        "bos": calibration.bos,
        "start": unit.start,
        "stop": unit.stop,
        "tokenizers": importlib.metadata.version("tokenizers"),
    }
    return {
        "stage": STAGE_VERSION,
        "statistic": statistic,
        "options": options.model_dump() if options else None,
        "model": job.model.identity,
        "dtype": job.scoring.dtype,
        "calibration": text if unit.stop else None,
        "protected": job.protected if statistic == "greedy_ppl" else None,
        "cuts": max(job.counts) if statistic == "greedy_ppl" else None,
    }
