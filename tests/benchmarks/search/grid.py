"""The grids that are replayed: 36 candidates on a model, each trained and scored at every rung."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.records import PerplexityScore

RUNGS = (0.125, 0.25, 0.5, 1.0)
_RUNS = {"warmup_steps": 2, "decay_ratio": 0.2}


def tiny(assets: Path) -> dict[str, Any]:
    """The tiny model, on 48 x 512 tokens."""
    stories = str(assets / "tiny/texts/stories.jsonl")
    return {
        "model": {"path": str(assets / "tiny/model"), "dtype": "float32"},
        "calibration": {"path": stories, "num_sequences": 10, "sequence_length": 128},
        "pruning": {"criteria": ["ppl", "taylor", "magnitude"], "protect_first": 1, "protect_last": 1},
        "search": {"ratios": [0.25, 0.5], "rungs": RUNGS},
        "retraining": {
            "data": {"path": stories},
            "tokens": 48 * 512,
            "sequence_length": 128,
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "cpt": {"learning_rate": [3e-4, 1e-3], **_RUNS},
            "lora": {"learning_rate": [3e-3, 1e-2], "schedule": "wsd", **_RUNS},
            "distill": {"learning_rate": [3e-4, 1e-3], **_RUNS},
        },
        "evaluation": {"selection": {"perplexity": [{"path": stories, "bos": "none", "max_tokens": 8192}]}},
    }


def smollm2(assets: Path) -> dict[str, Any]:
    """SmolLM2-135M, on 32 x 512 tokens."""
    wiki = str(assets / "texts/wiki.jsonl")
    return {
        "model": {"path": str(assets / "smollm2-135m-instruct"), "dtype": "float32"},
        "calibration": {"path": wiki, "num_sequences": 10, "sequence_length": 128},
        "pruning": {"criteria": ["ppl", "taylor", "magnitude"], "protect_first": 4, "protect_last": 2},
        "search": {"ratios": [0.2, 0.4], "rungs": RUNGS},
        "retraining": {
            "data": [{"path": wiki}, {"path": str(assets / "texts/c4.jsonl")}],
            "tokens": 32 * 512,
            "sequence_length": 256,
            "global_batch_size": 2,
            "micro_batch_size": 2,
            "cpt": {"learning_rate": [3e-4, 1e-3], **_RUNS},
            "lora": {"learning_rate": [1e-3, 3e-3], "schedule": "wsd", **_RUNS},
            "distill": {"learning_rate": [3e-4, 1e-3], **_RUNS},
        },
        "evaluation": {"selection": {"perplexity": [{"path": wiki, "segment_length": 256, "max_tokens": 4096}]}},
    }


GRIDS: dict[str, Callable[[Path], dict[str, Any]]] = {"tiny": tiny, "smollm2": smollm2}
"""3 criteria x 2 ratios x {cpt, lora, distill} x 2 learning rates, by the model."""


def grid_config(name: str, assets: Path, storage: str) -> ExperimentConfig:
    values = GRIDS[name](assets)
    values["retraining"] |= {"methods": ["cpt", "lora", "distill"], "validation_sequences": 0}
    return parse_config(values | {"experiment": "grid", "storage": {"url": storage}, "resources": {"workers": 1}})


def recorded(name: str) -> Path:
    """Where a grid's points are kept."""
    return Path(__file__).with_name(f"{name}_grid.json")


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
            unit="text", source="text", protocol="", perplexity=math.exp(self.loss), mean_nll=self.loss,
            num_predictions=sum(self.document_predictions), document_nll=self.document_nll,
            document_predictions=self.document_predictions,
        )  # fmt: skip


def write_points(points: list[Point], path: Path) -> None:
    rows = [json.dumps(asdict(replace(point, seconds=round(point.seconds, 1)))) for point in points]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def read_points(path: Path) -> list[Point]:
    lists = ("document_nll", "document_predictions")
    return [Point(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in json.loads(path.read_text())]
