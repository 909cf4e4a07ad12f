"""What benchmarks on SmolLM2-135M share: its text, its perplexity, and a process for each measurement."""

import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from shortened_llm.config import CalibrationConfig
from shortened_llm.data.sources import Documents
from shortened_llm.models.cpu import fair_threads
from shortened_llm.models.directory import load_tokenizer
from shortened_llm.records import ModelRef

ASSETS = Path("~/.cache/shortened_llm/assets").expanduser()
MODEL = ASSETS / "smollm2-135m-instruct"
LENGTH, CALIBRATION, HELD_OUT = 128, 16, 64
"""Tokens of a sequence; sequences to calibrate on, and to measure perplexity on."""


def alone(work: Callable[..., dict], *arguments: object) -> dict:
    """What `work` returns, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare) as process:
        return process.submit(work, *arguments).result()


def prepare() -> None:
    torch.set_num_threads(fair_threads(1))


def text_of(ref: ModelRef, name: str, sequences: int, *, last: bool = False) -> torch.Tensor:
    """Sequences from the beginning or the end of a text, [sequences, length]."""
    lines = (ASSETS / "texts" / f"{name}.jsonl").read_text().splitlines()
    tokenizer, needed, ids = load_tokenizer(Path(ref.url)), sequences * LENGTH, list[int]()
    for line in reversed(lines) if last else lines:
        ids += tokenizer(json.loads(line)["text"])["input_ids"]
        if len(ids) >= needed:
            break
    return torch.tensor(ids[:needed]).view(sequences, LENGTH)


def perplexity(model: PreTrainedModel, ref: ModelRef) -> float:
    """Over held-out sequences of wiki and c4 together."""
    losses: list[float] = []
    for name in ("wiki", "c4"):
        for part in text_of(ref, name, HELD_OUT, last=True).split(8):
            with torch.inference_mode():
                logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
            losses.append(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()).item())
    return math.exp(float(np.mean(losses)))


def calibration_rows(ref: ModelRef, sequences: int, directory: Path) -> Documents:
    """Sequences from the beginning of wiki as a calibration text, written into a directory."""
    file = directory / "rows.jsonl"
    rows = text_of(ref, "wiki", sequences).tolist()
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    source = CalibrationConfig(path=str(file), num_sequences=sequences, sequence_length=LENGTH)
    return Documents(
        source=source, purpose="calibration", shared_with=(), files=(str(file),), commit=None, field_path="calibration"
    )
