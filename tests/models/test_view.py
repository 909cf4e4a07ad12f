"""A view is the dense model with blocks missing, and what leaves the system loads in plain transformers."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.cut import cut_config
from shortened_llm.models.export import ExportError, export_model, probe_tokens, verify_export
from shortened_llm.models.files import model_size, open_tensor_files
from shortened_llm.models.load import load_config, load_model
from tests.conftest import SaveModel, reference_to
from tests.models.families import COMMON, FAMILIES

KEPT = (0, 2, 3, 5)


class Passing(nn.Module):
    """Hands its input on; the reference for a removed block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states


def bypassed_logits(model: PreTrainedModel, kept: tuple[int, ...], tokens: torch.Tensor) -> torch.Tensor:
    blocks = find_blocks(model)
    for index in range(len(blocks)):
        if index not in kept:
            blocks[index] = Passing(blocks[index])
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_has_the_logits_of_the_dense_model_without_the_blocks(family: str, save_random_model: SaveModel) -> None:
    model, ref = save_random_model(FAMILIES[family])
    tokens = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    view = load_model(ref.view(KEPT), "float32")
    with torch.inference_mode():
        logits = view(input_ids=tokens, use_cache=False).logits
    assert torch.equal(logits, bypassed_logits(model, KEPT, tokens))
    assert len(find_blocks(view)) == len(KEPT)


class AnyTokenizer:
    """Stands for a tokenizer where only the model matters."""

    def save_pretrained(self, directory: Path) -> None:
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_view_reloads_bit_for_bit_and_generates(
    family: str, save_random_model: SaveModel, tmp_path: Path
) -> None:
    _, ref = save_random_model(FAMILIES[family])
    view = load_model(ref.view(KEPT), "float32")
    export_model(view, AnyTokenizer(), tmp_path / "out")  # type: ignore[arg-type]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = probe_tokens(97)
    with torch.inference_mode():
        assert torch.equal(reloaded(input_ids=tokens).logits, view(input_ids=tokens).logits)
        cached = reloaded.generate(tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=True)
        plain = reloaded.generate(tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    assert reloaded.config.num_hidden_layers == len(KEPT)


def test_the_proof_of_an_export_can_fail(tiny_model, tmp_path: Path) -> None:
    from shortened_llm.models.load import load_tokenizer, model_directory

    view = load_model(tiny_model.view((0, 3, 7)), "float32")
    export_model(view, load_tokenizer(model_directory(tiny_model)), tmp_path)
    with torch.inference_mode():
        logits = view(input_ids=probe_tokens(view.config.vocab_size)).logits
    verify_export(tmp_path, logits, "float32")
    with pytest.raises(ExportError, match="differ"):
        verify_export(tmp_path, logits + 1e-4, "float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_from_headers_are_those_of_the_loaded_view(family: str, save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES[family])
    size = model_size(open_tensor_files(Path(ref.url)), ref.num_blocks)
    view = load_model(ref.view(KEPT), "float32")
    assert size.parameters(KEPT) == sum(parameter.numel() for parameter in view.parameters())


def test_lists_over_blocks_are_sliced_and_index_lists_remapped() -> None:
    gemma = cut_config(FAMILIES["gemma3"], (1, 2, 5))
    assert gemma.layer_types == [FAMILIES["gemma3"].layer_types[block] for block in (1, 2, 5)]
    assert cut_config(FAMILIES["qwen3_moe"], (1, 2, 4)).mlp_only_layers == [0, 2]


def test_a_rule_over_the_index_is_refused() -> None:
    config = FAMILIES["qwen3_moe"].__class__(**FAMILIES["qwen3_moe"].to_dict() | {"decoder_sparse_step": 2})
    with pytest.raises(BadInputError, match="decoder_sparse_step"):
        cut_config(config, (0, 1))


def test_damaged_and_missing_files_are_named(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    weights = Path(ref.url) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInputError, match="damaged"):
        open_tensor_files(Path(ref.url))
    weights.unlink()
    with pytest.raises(BadInputError, match="safetensors"):
        open_tensor_files(Path(ref.url))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "bert"),
        ('{"model_type": "t5"}', "t5"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(tmp_path: Path, content: str | None, word: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInputError, match=word):
        load_config(tmp_path)


def test_the_config_of_the_dense_model_stays(save_random_model: SaveModel) -> None:
    config: PreTrainedConfig = LlamaConfig(**COMMON)
    cut = cut_config(config, (0, 1))
    assert (config.num_hidden_layers, cut.num_hidden_layers) == (6, 2)


def test_a_reference_knows_its_blocks(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    assert reference_to(Path(ref.url)).kept_blocks == (0, 1, 2, 3, 4, 5)
    assert ref.view((0, 1, 2, 3, 4, 5)).identity == ref.identity
    assert ref.view((0, 1)).identity != ref.identity
