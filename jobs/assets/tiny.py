"""A tiny Llama, trained on stories in about a minute: real enough to rank criteria, small enough for every test."""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.assets.texts import news, tinystories, write_documents
from shortened_llm.logs import LOGGER

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 256
NUM_NEWS = 200
SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyRecipe:
    """How the tiny model is trained."""

    steps: int = 400
    sequence_length: int = 128
    """Tokens; a token is a byte."""
    batch_size: int = 8
    """Sequences per step; four times as many take twice as long to the same loss."""
    learning_rate: float = 2.5e-3
    """Peak, reached after `warmup_steps`; a cosine takes it to a tenth."""
    warmup_steps: int = 20
    weight_decay: float = 0.1
    held_out: int = 20
    """Every n-th story is kept out of training: 5 %."""
    seed: int = 0


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """Token *i* is the byte *i*; 256 ends a text. Adds no beginning-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _byte_vocabulary() -> dict[str, int]:
    """The byte-level alphabet: printable bytes stand for themselves, others for characters from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    spelling = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return {spelling[byte]: byte for byte in range(256)}


def new_model(seed: int) -> "LlamaForCausalLM":
    """Untrained: 8 blocks, 1.5 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=END_OF_TEXT_ID + 1,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.05,  # 0.02, the default, suits wider models: it costs 0.25 bits per byte at this budget.
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=END_OF_TEXT_ID,
    )
    return LlamaForCausalLM(config)


def encode(stories: list[str]) -> "torch.Tensor":
    """All stories as one row of token ids [tokens], an end-of-text token behind each."""
    import torch

    return torch.tensor([token for story in stories for token in (*story.encode(), END_OF_TEXT_ID)])


def train(model: "LlamaForCausalLM", tokens: "torch.Tensor", recipe: TinyRecipe) -> None:
    """AdamW on windows of `tokens` drawn at random; one progress line every few seconds."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    draw = random.Random(recipe.seed)
    last_start = len(tokens) - recipe.sequence_length
    started = said = time.monotonic()
    model.train()
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, recipe)
        starts = [draw.randint(0, last_start) for _ in range(recipe.batch_size)]
        batch = torch.stack([tokens[start : start + recipe.sequence_length] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        now = time.monotonic()
        if now - said > SECONDS_BETWEEN_LINES or step == recipe.steps:
            said = now
            left = (now - started) / step * (recipe.steps - step)
            LOGGER.info("tiny model: step %d/%d, loss %.3f, %.0f s left", step, recipe.steps, loss.item(), left)
    model.eval()


def _learning_rate(step: int, recipe: TinyRecipe) -> float:
    if step <= recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def bits_per_byte(model: "LlamaForCausalLM", tokens: "torch.Tensor", sequence_length: int) -> float:
    """Mean of -log2 p(token | those before it in its window) over `tokens` [tokens]; the remainder is dropped."""
    import torch

    windows = tokens[: len(tokens) // sequence_length * sequence_length].view(-1, sequence_length)
    with torch.no_grad():
        losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in windows.split(32)]
    return sum(losses) / len(windows) / math.log(2)


def stage_tiny(directory: Path, downloads: Path, recipe: TinyRecipe | None = None) -> None:
    """Write `model/` and `texts/` to `directory`."""
    recipe = recipe or TinyRecipe()
    stories = tinystories(downloads)
    texts = directory / "texts"
    texts.mkdir()
    write_documents(texts / "stories.jsonl", stories)
    write_documents(texts / "news.jsonl", news(downloads)[:NUM_NEWS])

    from shortened_llm.models.cpu import one_thread  # whose torch takes seconds

    model = new_model(recipe.seed)
    with one_thread():
        train(model, encode([story for n, story in enumerate(stories) if n % recipe.held_out]), recipe)
        bits = bits_per_byte(model, encode(stories[:: recipe.held_out]), recipe.sequence_length)
    LOGGER.info("tiny model: %.2f bits per byte on stories it has not seen", bits)
    model.save_pretrained(directory / "model")
    byte_tokenizer().save_pretrained(directory / "model")
