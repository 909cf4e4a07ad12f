"""The grid that is replayed: 36 candidates on the tiny model, each trained and scored at every rung."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.records import PerplexityScore

RECORDED = Path(__file__).with_name("tiny_grid.json")
RUNGS = (0.125, 0.25, 0.5, 1.0)


def grid_config(assets: Path, storage: str) -> ExperimentConfig:
    """3 criteria x 2 ratios x {cpt, lora, distill} x 2 learning rates."""
    stories = str(assets / "texts/stories.jsonl")
    text = {"path": stories, "bos": "none", "max_tokens": 8192}
    runs = {"warmup_steps": 2, "decay_ratio": 0.2}
    return parse_config(
        {
            "experiment": "grid",
            "storage": {"url": storage},
            "model": {"path": str(assets / "model"), "dtype": "float32"},
            "calibration": {"path": stories, "num_sequences": 10, "sequence_length": 128},
            "pruning": {"criteria": ["ppl", "taylor", "magnitude"], "protect_first": 1, "protect_last": 1},
            "search": {"ratios": [0.25, 0.5], "rungs": RUNGS},
            "retraining": {
                "methods": ["cpt", "lora", "distill"],
                "data": {"path": stories},
                "tokens": 48 * 512,
                "sequence_length": 128,
                "global_batch_size": 4,
                "micro_batch_size": 4,
                "validation_sequences": 0,
                "cpt": {"learning_rate": [3e-4, 1e-3], **runs},
                "lora": {"learning_rate": [3e-3, 1e-2], "schedule": "wsd", **runs},
                "distill": {"learning_rate": [3e-4, 1e-3], **runs},
            },
            "evaluation": {"selection": {"perplexity": [text]}},
            "resources": {"workers": 1},
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A candidate at a rung, as it was measured."""

    candidate: int
    """Its place in the grid."""
    target: int
    """Blocks that stay."""
    name: str
    rung: float
    tokens: int
    seconds: float
    """Training time, on a machine that may have been busy."""
    document_nll: tuple[float, ...]
    document_predictions: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean NLL, in nats per token."""
        return sum(self.document_nll) / sum(self.document_predictions)

    @property
    def score(self) -> PerplexityScore:
        """The record that a strategy sees."""
        return PerplexityScore(
            unit="stories", source="stories", protocol="", perplexity=math.exp(self.loss), mean_nll=self.loss,
            num_predictions=sum(self.document_predictions), document_nll=self.document_nll,
            document_predictions=self.document_predictions,
        )  # fmt: skip


def write_points(points: list[Point], path: Path = RECORDED) -> None:
    rows = [json.dumps(asdict(replace(point, seconds=round(point.seconds, 1)))) for point in points]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def read_points(path: Path = RECORDED) -> list[Point]:
    lists = ("document_nll", "document_predictions")
    return [Point(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in json.loads(path.read_text())]
