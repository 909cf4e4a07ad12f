"""The text part of a model of several modalities computes what the whole does on text, and stands alone."""

import json
from pathlib import Path

import fsspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from shortened_llm.config import ModelConfig
from shortened_llm.models.directory import load_config
from shortened_llm.models.export import export_view
from shortened_llm.models.families import TEXT_PARTS
from shortened_llm.models.inspection import check_directory
from shortened_llm.models.load import load_model
from shortened_llm.models.stage import MODEL_FILES, inspect_model
from shortened_llm.records import BlocksTransform, ModelRef
from shortened_llm.storage.payload import describe_files

NUM_BLOCKS, VOCABULARY = 4, 600
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64,
    "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "max_position_embeddings": 512, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "depth": 2, "num_attention_heads": 2,
    "num_heads": 2, "num_key_value_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 16,
    "out_hidden_size": 32, "projection_dim": 32, "vision_output_dim": 32, "projector_input_dim": 32,
    "projector_output_dim": 32,
}  # fmt: skip


def small(config: PretrainedConfig, sizes: dict[str, int]) -> dict[str, object]:
    values = config.to_dict()
    return values | {name: size for name, size in sizes.items() if values.get(name) is not None}


def whole_model(name: str, is_tied: bool | None) -> PreTrainedModel:
    """A small model of all modalities with random weights; None: tied as its configuration is by default."""
    kind = CONFIG_MAPPING[name]
    asked = small(type(kind().text_config)(), TEXT)
    text = type(kind().text_config)(**{key: asked[key] for key in TEXT if key in asked})
    config = kind(text_config=text.to_dict(), vision_config=small(kind().vision_config, VISION))
    if is_tied is not None:
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = is_tied
    torch.manual_seed(0)
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).float().eval()


@pytest.mark.parametrize(
    ("name", "is_tied"), [*((name, None) for name in sorted(TEXT_PARTS)), ("mistral3", False), ("mistral3", True)]
)
@torch.no_grad()
def test_it_computes_the_same_and_is_exported_alone(
    name: str, is_tied: bool | None, tmp_path: Path, tiny_model: ModelRef
) -> None:
    """Of released configurations many do not say whether the head is tied; the files do."""
    directory, whole = tmp_path / "whole", whole_model(name, is_tied)
    whole.save_pretrained(directory)
    if is_tied is not None:
        values = json.loads((directory / "config.json").read_text())
        values.pop("tie_word_embeddings", None)
        values["text_config"].pop("tie_word_embeddings", None)
        (directory / "config.json").write_text(json.dumps(values))
    AutoTokenizer.from_pretrained(tiny_model.url).save_pretrained(directory)
    check_directory(directory)
    files = describe_files(directory, MODEL_FILES)
    assert load_config(directory).num_hidden_layers == NUM_BLOCKS
    dense = ModelRef(url=str(directory), fingerprint=name, files=files, num_blocks=NUM_BLOCKS)
    tokens = torch.arange(5, 25)[None]
    logits = load_model(dense, "float32")(input_ids=tokens).logits
    assert torch.equal(logits, whole(input_ids=tokens).logits)

    fsspec.filesystem("memory").put(f"{directory}/", f"/{tmp_path.name}", recursive=True)
    from_afar, _ = inspect_model(ModelConfig(path=f"memory://{tmp_path.name}"))
    assert from_afar.tie_word_embeddings == load_config(directory).tie_word_embeddings

    shortened = dense.view((BlocksTransform(kept=(0, 1, 3)),))
    export_view(shortened, tmp_path / "plain", "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert plain.config.num_hidden_layers == NUM_BLOCKS - 1
    assert torch.equal(plain(input_ids=tokens).logits, load_model(shortened, "float32")(input_ids=tokens).logits)
