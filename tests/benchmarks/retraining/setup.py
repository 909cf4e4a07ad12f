"""The model, the texts and the recipe that every competitor gets."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from shortened_llm.config import RetrainingConfig, TrainingSource
from shortened_llm.data.batches import TrainingStream
from shortened_llm.methods.cpt import CptOptions
from shortened_llm.models.directory import load_config, load_tokenizer
from shortened_llm.records import ModelRef, TokenDataset, TokenMixture
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.recipe import chains
from shortened_llm.storage.payload import describe_files
from tests.conftest import keeping

ASSETS = Path("~/.cache/shortened_llm/assets").expanduser()
SMOLLM2, TINY = ASSETS / "smollm2-135m-instruct", ASSETS / "tiny/model"
# 20 % of the blocks: those that perplexity ranks lowest on 10 x 128 tokens of wiki.jsonl, and some for the tiny model.
REMOVED = {SMOLLM2: (5, 13, 14, 16, 17, 18), TINY: (3, 5)}
# Tokens of a text that perplexity is measured on, in segments of so many.
HELD_OUT_TOKENS, SEGMENT = 4096, 256


def make_job(
    directory: Path,
    model: Path = SMOLLM2,
    *,
    steps: int,
    sequences: int = 4,
    length: int = 256,
    micro_batch: int = 4,
    dtype: str = "bfloat16",
    checkpoint_steps: int | None = None,
) -> RetrainingJob:
    """Continued pretraining for so many steps; the tokens are written below `directory`.

    Args:
        checkpoint_steps: between checkpoints; none unless given.
    """
    blocks = load_config(model).num_hidden_layers
    dense = ModelRef(url=str(model), fingerprint=model.name, files=describe_files(model), num_blocks=blocks)
    budget = steps * sequences * length
    config = RetrainingConfig(
        data=(TrainingSource(path="wiki.jsonl"), TrainingSource(path="c4.jsonl")),
        tokens=budget,
        sequence_length=length,
        global_batch_size=sequences,
        micro_batch_size=micro_batch,
        checkpoint_tokens=budget if checkpoint_steps is None else checkpoint_steps * sequences * length,
        validation_sequences=0,
        cpt=CptOptions(learning_rate=(3e-4,), warmup_ratio=0.1),
    )
    ((recipe,),) = chains(config, "cpt", budget, num_pairs=0)
    return RetrainingJob(
        model=dense.view(keeping(tuple(block for block in range(blocks) if block not in REMOVED[model]))),
        teacher=None,
        tokens=TokenMixture(parts=(_write_tokens(directory, model, max(64, steps * sequences), length),)),
        validation=None,
        recipe=recipe,
        dtype=dtype,
        export_dtype=dtype,
        placement=config,
    )


def step_tokens(job: RetrainingJob, *, rank: int = 0, world_size: int = 1) -> Iterator[torch.Tensor]:
    """One process's tokens of each step, [sequences, length], as our loop reads them."""
    stream = TrainingStream(
        job.tokens, job.recipe, micro_batch_size=job.placement.micro_batch_size, rank=rank, world_size=world_size
    )
    for batch in stream.steps(0, job.recipe.num_steps):
        yield torch.cat([micro_batch.input_ids for micro_batch in batch.micro_batches])


def held_out_segments(model: Path = SMOLLM2) -> dict[str, torch.Tensor]:
    """Segments [segments, length] of documents that are not trained on, and of a source that is not."""
    texts = {name: _documents(name, held_out=True) for name in ("wiki", "c4")} | {"news": _documents("news")}
    tokenizer = load_tokenizer(model)
    return {
        name: torch.from_numpy(_pack(documents, tokenizer, HELD_OUT_TOKENS // SEGMENT, SEGMENT).astype(np.int64))
        for name, documents in texts.items()
    }


def _write_tokens(directory: Path, model: Path, num_sequences: int, length: int) -> TokenDataset:
    """Sequences of wiki and c4, half of each."""
    tokenizer = load_tokenizer(model)
    halves = [_pack(_documents(name, held_out=False), tokenizer, num_sequences // 2, length) for name in ("wiki", "c4")]
    rows = np.concatenate(halves)
    folder = directory / f"tokens_{len(rows)}x{length}_{model.name}"
    folder.mkdir(parents=True)
    np.save(folder / "tokens-00000.npy", rows)
    return TokenDataset(
        url=str(folder), fingerprint=folder.name, files=describe_files(folder), num_sequences=len(rows),
        sequence_length=length, num_documents=len(rows),
    )  # fmt: skip


def _documents(name: str, *, held_out: bool = True) -> list[str]:
    """The texts of a file: its last fifth is held out."""
    lines = (ASSETS / f"texts/{name}.jsonl").read_text().splitlines()
    cut = len(lines) * 4 // 5
    return [json.loads(line)["text"] for line in (lines[cut:] if held_out else lines[:cut])]


def _pack(documents: list[str], tokenizer: object, num_sequences: int, length: int) -> np.ndarray:
    tokens: list[int] = []
    for document in documents:
        tokens += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]  # type: ignore[operator, attr-defined]
        if len(tokens) >= num_sequences * length:
            return np.array(tokens[: num_sequences * length], dtype=np.uint16).reshape(-1, length)
    raise SystemExit(f"the texts have {len(tokens)} tokens, not {num_sequences} x {length}")
