"""Models of known shapes with random weights, and training jobs on random tokens."""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.assets.tiny import byte_tokenizer
from shortened_llm.config import RetrainingConfig, TrainingSource
from shortened_llm.records import ModelRef, TokenDataset, TokenMixture
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.recipe import chains
from shortened_llm.storage.payload import describe_files

SHAPES = {
    "toy": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 1000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
"""Of Llama 3.2 1B with a head of its own, and of Llama 3.1 8B."""
DISTINCT = 0.2
"""Standard deviation of weights under which each block of the toy changes the loss by much, as in a trained model."""
TOKEN_IDS = 300
"""Random tokens lie below this; 256, which ends a text, is among them."""


def write_model(
    directory: Path, shape: str, *, dtype: torch.dtype, device: torch.device, deviation: float = 0.02
) -> ModelRef:
    """A Llama of this shape with normal weights, and a tokenizer of bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], initializer_range=deviation, max_position_embeddings=4096, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    # Without hashes, which would take longer than a walk.
    return ModelRef(url=str(directory), fingerprint=shape, files=(), num_blocks=config.num_hidden_layers)


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
