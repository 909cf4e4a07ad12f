"""Llamas of known shapes with random weights, and text of random words: what a new cluster is tried with."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.assets.texts import write_documents
from jobs.assets.tiny import END_OF_TEXT_ID, byte_tokenizer

if TYPE_CHECKING:
    import torch

SHAPES = {
    "toy": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 1000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
"""Llama 3.2 1B with a head of its own, and Llama 3.1 8B."""
DEVIATION = 0.02
WORDS = 2000
"""Different ones; frequent words are as much more frequent than rare ones as in a language (Zipf)."""
DOCUMENTS = {"text": 4000, "unseen": 200}
"""Documents (count) of each file; one has about 2,000 letters, which are as many tokens."""
WORDS_EACH = 330


def write_random_model(
    directory: Path, shape: str, *, dtype: "torch.dtype", device: "torch.device", deviation: float = DEVIATION
) -> None:
    """Write a Llama of this shape with normal weights, and a tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], initializer_range=deviation, max_position_embeddings=4096, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=END_OF_TEXT_ID,
    )  # fmt: skip
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


def random_documents(count: int, seed: int) -> Iterator[str]:
    """Documents of random words."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 1) for rank in range(WORDS)]
    for _ in range(count):
        yield " ".join(draw.choices(words, weights, k=WORDS_EACH))


def stage_random(directory: Path, downloads: Path, *, shape: str) -> None:
    """Write `model/` and `texts/` to `directory`."""
    import torch

    (directory / "texts").mkdir()
    for seed, (name, count) in enumerate(DOCUMENTS.items()):
        write_documents(directory / "texts" / f"{name}.jsonl", random_documents(count, seed))
    write_random_model(directory / "model", shape, dtype=torch.bfloat16, device=torch.device("cpu"))
