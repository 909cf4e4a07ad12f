"""Models of known shapes with random weights, and training jobs on random tokens."""

from pathlib import Path

import numpy as np
import torch

from jobs.assets.random_model import DEVIATION, SHAPES, write_random_model
from shortened_llm.config import RetrainingConfig, TrainingSource
from shortened_llm.records import ModelRef, TokenDataset, TokenMixture
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.recipe import chains
from shortened_llm.storage.payload import describe_files

DISTINCT = 0.2
"""Standard deviation of weights under which each block of the toy changes the loss by much, as in a trained model."""
TOKEN_IDS = 300
"""Random tokens lie below this; 256, which ends a text, is among them."""


def write_model(
    directory: Path, shape: str, *, dtype: torch.dtype, device: torch.device, deviation: float = DEVIATION
) -> ModelRef:
    """A Llama of this shape with normal weights, and a tokenizer of bytes."""
    write_random_model(directory, shape, dtype=dtype, device=device, deviation=deviation)
    # Without hashes, which would take longer than a walk.
    return ModelRef(url=str(directory), fingerprint=shape, files=(), num_blocks=SHAPES[shape]["num_hidden_layers"])


def random_tokens(sequences: int, length: int) -> torch.Tensor:
    """Token ids, [sequences, length]."""
    return torch.randint(TOKEN_IDS, (sequences, length), generator=torch.Generator().manual_seed(0))


def random_job(
    directory: Path, model: ModelRef, method: str = "cpt", *, steps: int, dtype: str, sequences: int, length: int,
    checkpoint_steps: int | None = None, **options: object,
) -> RetrainingJob:  # fmt: skip
    """The first run of `method` for so many optimiser steps of `sequences`; the tokens are written below `directory`.

    Args:
        checkpoint_steps: between checkpoints; one at the end alone unless given.
        options: of the section `retraining`.
    """
    per_step = sequences * length
    config = RetrainingConfig.model_validate(
        {
            "methods": [method],
            "data": TrainingSource(path="random.jsonl"),
            "tokens": steps * per_step,
            "sequence_length": length,
            "global_batch_size": sequences,
            "checkpoint_tokens": (checkpoint_steps or steps) * per_step,
            "validation_sequences": 0,
        }
        | options
    )
    recipe = next(chains(config, method, steps * per_step, num_pairs=0))[0]
    return RetrainingJob(
        model=model,
        teacher=model.view(()) if recipe.distill else None,
        tokens=TokenMixture(parts=(_write_tokens(directory, steps * sequences, length),)),
        validation=None,
        recipe=recipe,
        dtype=dtype,
        export_dtype=dtype,
        placement=config,
    )


def _write_tokens(directory: Path, sequences: int, length: int) -> TokenDataset:
    folder = directory / f"tokens-{sequences}x{length}"
    if not folder.exists():
        folder.mkdir(parents=True)
        np.save(folder / "tokens-00000.npy", random_tokens(sequences, length).numpy().astype(np.uint16))
    return TokenDataset(
        url=str(folder), fingerprint=folder.name, files=describe_files(folder), num_sequences=sequences,
        sequence_length=length, num_documents=sequences,
    )  # fmt: skip
