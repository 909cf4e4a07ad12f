"""Write a plain Hugging Face directory, and prove that it is one."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.models.build import DTYPES
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef

PROBE_LENGTH = 16
PROBE_NEW_TOKENS = 4


class ExportError(RuntimeError):
    """The written directory does not load as the model that was written."""


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> None:
    """Save weights (safetensors), configuration and tokenizer."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def export_view(ref: ModelRef, directory: Path, dtype: str) -> None:
    """Write a view as a directory of its own, and prove that it reloads; raises as `verify_export`."""
    view = load_model(ref, dtype)
    with torch.inference_mode():
        logits = view(input_ids=probe_tokens(view.config.vocab_size), use_cache=False).logits
    export_model(view, load_tokenizer(model_directory(ref)), directory)
    verify_export(directory, logits, dtype)


def probe_tokens(vocab_size: int) -> torch.Tensor:
    """A fixed input, [1, 16], for comparing a model before and after its export."""
    return torch.randint(vocab_size, (1, PROBE_LENGTH), generator=torch.Generator().manual_seed(0))


def verify_export(directory: Path, reference_logits: torch.Tensor, dtype: str) -> None:
    """Reload `directory` in plain transformers: the same logits, and generation with the KV cache.

    Args:
        reference_logits: of `probe_tokens`, from the model that was written, computed in `dtype`; [1, 16, vocab].

    Raises:
        ExportError: the logits differ, or generation stops short.
    """
    reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPES[dtype], trust_remote_code=False).eval()
    AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    tokens = probe_tokens(reloaded.config.vocab_size)
    with torch.inference_mode():
        logits = reloaded(input_ids=tokens, use_cache=False).logits
    if not torch.equal(logits, reference_logits):
        difference = (logits.float() - reference_logits.float()).abs().max().item()
        raise ExportError(f"{directory} reloads with logits that differ by up to {difference}")
    check_generation(reloaded)


def check_generation(model: PreTrainedModel) -> None:
    """Generate some tokens with the KV cache.

    Raises:
        ExportError: generation stops short.
    """
    tokens = probe_tokens(model.config.vocab_size).to(model.device)
    with torch.inference_mode():
        generated = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=PROBE_NEW_TOKENS,
            min_new_tokens=PROBE_NEW_TOKENS, do_sample=False, use_cache=True, pad_token_id=0,
        )  # fmt: skip
    if generated.shape[1] != PROBE_LENGTH + PROBE_NEW_TOKENS:
        raise ExportError(
            f"{type(model).__name__} generated {generated.shape[1] - PROBE_LENGTH} tokens with the KV cache instead of "
            f"{PROBE_NEW_TOKENS}"
        )
