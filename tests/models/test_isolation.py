"""Packed documents: each family keeps them apart in its own way, or is refused."""

import pytest
import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from shortened_llm.errors import BadInputError
from shortened_llm.models.head import final_hidden
from shortened_llm.models.isolation import check_isolation, choose_isolation, document_inputs
from shortened_llm.models.toy import build_toy


def config_of(family: str) -> PretrainedConfig:
    return CONFIG_MAPPING[family](num_hidden_layers=4, vocab_size=97, pad_token_id=0, bos_token_id=1, eos_token_id=2)


@pytest.mark.parametrize(
    ("family", "way"),
    [
        ("llama", "positions"),
        ("gemma3_text", "positions"),
        ("gpt2", "positions"),
        ("opt", "mask"),
        ("falcon", "mask"),
        ("gpt_oss", "masks"),
        ("mamba", None),
        ("qwen3_next", None),
        ("falcon_h1", None),
        ("recurrent_gemma", None),
    ],
)
def test_a_way_is_found_or_the_family_is_refused(family: str, way: str | None) -> None:
    if way is None:
        with pytest.raises(BadInputError, match=f"retraining.isolate_documents: is true, .* in {family} models"):
            choose_isolation(config_of(family))
        return
    assert choose_isolation(config_of(family)) == way


@pytest.mark.parametrize(("family", "way"), [("llama", "positions"), ("opt", "mask"), ("gpt_oss", "masks")])
def test_loaded_weights_are_checked_too(family: str, way: str) -> None:
    """OPT and gpt-oss do not obey position ids alone, which Llama does."""
    model = build_toy(config_of(family))

    def hidden(isolation: str):  # type: ignore[no-untyped-def]
        return lambda tokens, positions: final_hidden(
            model,
            tokens,
            document_inputs(positions, isolation, model.config, torch.float32),  # type: ignore[arg-type]
        )

    check_isolation(model, hidden(way))
    if way != "positions":
        with pytest.raises(BadInputError, match="set false"):
            check_isolation(model, hidden("positions"))
