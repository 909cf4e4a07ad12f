"""GGUF files as plain Hugging Face directories."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from jobs.assets.tiny import byte_tokenizer
from shortened_llm.config import ModelConfig
from shortened_llm.errors import BadInputError
from shortened_llm.models.gguf import convert_gguf
from shortened_llm.models.stage import inspect_model

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def llama(*, tied: bool) -> torch.nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=8, tie_word_embeddings=tied)).eval()


def qwen3(*, tied: bool, head_dim: int = 128) -> torch.nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=head_dim, tie_word_embeddings=tied)).eval()


def write_gguf(path: Path, model, *, architecture: str, without: str = "", also=lambda writer: None) -> None:
    """Write `model` the way llama.cpp does: its tensor names, and Llama's queries and keys in interleaved order; and
    what `also` adds."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("random")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = byte_tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(vocabulary, key=vocabulary.__getitem__), "ĠĠ"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL, gguf.TokenType.NORMAL])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
    for name, weight in model.state_dict().items():
        if name == without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        if architecture == "llama" and "q_proj" in name:
            weight = interleave(weight, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            weight = interleave(weight, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), weight.numpy())
    also(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, block, part = stem.split(".", 3)
        return f"blk.{block}.{NAMES[part]}.weight"
    return f"{NAMES[stem]}.weight"


@pytest.mark.parametrize(
    ("also", "unread"),
    [
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.full(4, 32, dtype=np.float32)), "rope_freqs.weight"),
        (lambda writer: writer.add_rope_scaling_factor(8.0), "llama.rope.scaling.factor"),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN), "llama.rope.scaling.type"),
        (lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(32, dtype=np.float32)), "blk.0.attn_q.bias"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32)), None),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.NONE), None),
    ],
)  # fmt: skip
def test_what_transformers_passes_over_is_refused(tmp_path, also, unread):
    torch.manual_seed(0)
    write_gguf(tmp_path / "model.gguf", llama(tied=False), architecture="llama", also=also)
    if unread is None:
        convert_gguf(tmp_path / "model.gguf", tmp_path / "plain")
        return
    said = f"model.path: .*does not read {unread}, .*safetensors"
    with pytest.raises(BadInputError, match=said):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "plain")
    with pytest.raises(BadInputError, match=said):  # before anything is spent
        inspect_model(ModelConfig(path=str(tmp_path / "model.gguf")))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("build", [llama, qwen3])
def test_plain_directory_has_the_logits_and_tokens_of_the_file(tmp_path, build, tied):
    torch.manual_seed(0)
    model = build(tied=tied)
    write_gguf(tmp_path / "model.gguf", model, architecture=build.__name__)

    convert_gguf(tmp_path / "model.gguf", tmp_path / "plain")

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    batch = tokenizer("Once upon a time", return_tensors="pt")
    assert batch.input_ids.tolist() == [list(b"Once upon a time")]
    assert tokenizer.eos_token_id == 256
    assert plain.dtype == torch.float32
    assert not hasattr(plain.config, "quantization_config")
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    assert plain.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 19)


def test_missing_weights_are_refused(tmp_path):
    write_gguf(
        tmp_path / "model.gguf",
        llama(tied=True),
        architecture="llama",
        without="model.layers.1.mlp.up_proj.weight",
    )
    with pytest.raises(BadInputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_weights_of_another_shape_than_the_config_says_are_refused(tmp_path):
    # transformers takes 128 for Qwen3's head size, whatever the file says.
    write_gguf(tmp_path / "model.gguf", qwen3(tied=True, head_dim=8), architecture="qwen3")
    with pytest.raises(BadInputError, match=r"another shape .*self_attn"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "plain")


def test_unknown_architecture_is_refused(tmp_path):
    write_gguf(tmp_path / "model.gguf", llama(tied=True), architecture="no_such_model")
    with pytest.raises(BadInputError, match="no_such_model"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "plain")


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, llama(tied=True), architecture="llama")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BadInputError, match=r"model\.gguf"):
        convert_gguf(path, tmp_path / "plain")


@pytest.mark.parametrize("content", [b"", b"GG", b'{"not": "gguf"}'])
def test_a_file_that_is_not_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(BadInputError, match="not a GGUF file"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "plain")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="No such file"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "plain")
