"""A block without its attention or its MLP, in every family whose blocks have one of each."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PhiConfig, PretrainedConfig, PreTrainedModel

from jobs.assets.tiny import byte_tokenizer
from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.export import export_view
from shortened_llm.models.load import load_model
from shortened_llm.models.parts import PART_NAMES, NoPart
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.transforms.sublayers import check_sublayers
from shortened_llm.models.view import size_of, view_config
from shortened_llm.records import BlocksTransform, SublayersTransform, Transform
from shortened_llm.search.preflight_toy import try_plans
from tests.conftest import SaveModel
from tests.models.families import COMMON, FAMILIES, INDEXED

REMOVED = SublayersTransform.without([(0, "attention"), (2, "mlp"), (4, "attention"), (5, "mlp")])
TOKENS = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
ALL: dict[str, PretrainedConfig] = FAMILIES | INDEXED
WITHOUT_PARTS = {"llama4"}
"""Its blocks expect more of a sub-layer than hidden states."""


def skipping(model: PreTrainedModel, transform: SublayersTransform) -> PreTrainedModel:
    """The reference: hooks put zeros in the place of what the sub-layers compute."""

    def nothing(_: object, __: object, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        if isinstance(output, torch.Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])

    for block, part in transform.removed:
        modules = dict(find_blocks(model)[block].named_children())
        next(modules[name] for name in PART_NAMES[part] if name in modules).register_forward_hook(nothing)
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits


def generated(model: PreTrainedModel, *, use_cache: bool) -> torch.Tensor:
    with torch.inference_mode():
        return model.generate(
            TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=12, min_new_tokens=12, do_sample=False,
            use_cache=use_cache, pad_token_id=0,
        )  # fmt: skip


@pytest.mark.parametrize("family", [family for family in ALL if family not in WITHOUT_PARTS])
def test_a_view_computes_what_the_dense_model_does_without_the_sublayers(
    family: str, save_random_model: SaveModel
) -> None:
    model, ref = save_random_model(ALL[family])
    view = load_model(ref.view((REMOVED,)), "float32")
    wanted = logits(skipping(model, REMOVED))
    assert torch.equal(logits(view), wanted)
    assert torch.equal(generated(view, use_cache=True), generated(view, use_cache=False))
    assert torch.equal(generated(view, use_cache=False), generated(model, use_cache=False))
    blocks = find_blocks(view)
    parts = [
        name for index, block in enumerate(blocks) for name, one in block.named_children() if isinstance(one, NoPart)
    ]
    assert len(parts) == len(REMOVED.removed)
    size = size_of(view_config(ref), "float32").after((REMOVED,))
    assert size.parameters == sum(weight.numel() for weight in view.parameters())


@pytest.mark.parametrize("family", [family for family in ALL if family not in WITHOUT_PARTS])
def test_a_plain_export_holds_zeros_and_has_equal_logits(
    family: str, save_random_model: SaveModel, tmp_path: Path
) -> None:
    _, ref = save_random_model(ALL[family])
    byte_tokenizer().save_pretrained(ref.url)
    view = ref.view((REMOVED,))
    export_view(view, tmp_path, "float32")
    plain, loaded = (
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(),
        load_model(view, "float32"),
    )
    assert torch.equal(logits(plain), logits(loaded))
    left = dict(loaded.named_parameters())
    removed = [weight for name, weight in plain.named_parameters() if name not in left]
    assert not any(weight.any() for weight in removed)
    zeros = sum(weight.numel() for weight in removed)
    size = size_of(view_config(ref), "float32").after((REMOVED,))
    whole = sum(weight.numel() for weight in plain.parameters())
    assert (whole - zeros, whole * 4) == (size.nonzero_parameters, size.num_bytes)


def test_blocks_and_sublayers_go_together(save_random_model: SaveModel, tmp_path: Path) -> None:
    """The indices of both are those of the files; a plain export forgets the blocks and keeps the zeros."""
    model, ref = save_random_model(FAMILIES["llama"])
    byte_tokenizer().save_pretrained(ref.url)
    transforms: tuple[Transform, ...] = (BlocksTransform(kept=(1, 2, 4, 5)), REMOVED)
    view = ref.view(transforms)
    export_view(view, tmp_path, "float32")
    exported = view.exported(url=str(tmp_path), fingerprint="exported", files=())
    left = SublayersTransform.without([(1, "mlp"), (2, "attention"), (3, "mlp")])
    assert exported.transforms == (left,)
    assert logits(load_model(exported, "float32")).equal(logits(load_model(view, "float32")))
    wanted = skipping(model, SublayersTransform.without([(0, "mlp"), (3, "attention"), (3, "mlp"), *REMOVED.removed]))
    assert torch.equal(logits(load_model(view, "float32")), logits(wanted))
    assert exported.shortening == view.shortening == (
        BlocksTransform(kept=(1, 2, 4, 5)), SublayersTransform.without([(2, "mlp"), (4, "attention"), (5, "mlp")])
    )  # fmt: skip
    again = exported.view((*exported.transforms, BlocksTransform(kept=(0, 1, 3))))
    assert again.shortening == (
        BlocksTransform(kept=(1, 2, 5)), SublayersTransform.without([(2, "mlp"), (5, "mlp")])
    )  # fmt: skip


def test_a_streamed_view_never_reads_what_was_removed(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    streamed = StreamedModel.open(ref.view((REMOVED,)), "float32")
    for index, block in streamed.read_blocks(range(6)):
        whole = load_model(ref.view((REMOVED,)), "float32")
        for name, weight in find_blocks(whole)[index].named_parameters():
            assert torch.equal(weight, block.get_parameter(name))


def test_the_dense_model_may_not_lose_all_attention_of_a_kind() -> None:
    everywhere = SublayersTransform.without((block, "attention") for block in range(6))
    with pytest.raises(BadInputError, match="the attention of all 6 blocks with attention goes"):
        check_sublayers(FAMILIES["llama"], everywhere)
    full = SublayersTransform.without([(2, "attention"), (5, "attention")])
    with pytest.raises(BadInputError, match="the attention of all 2 blocks with full_attention goes"):
        check_sublayers(FAMILIES["gemma3"], full)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OPTConfig(vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=6, num_attention_heads=4), "mlp"),
        (ALL["llama4"], ""),
    ],
)
def test_families_without_two_such_modules_are_refused(config: PretrainedConfig, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        try_plans(config, byte_tokenizer(), [(REMOVED,)])


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=512, n_embd=32, n_layer=6, n_head=4),
        PhiConfig(**COMMON | {"vocab_size": 512}),
        *(config for name, config in FAMILIES.items() if name in ("llama", "gemma2", "olmo2", "gpt_neox")),
    ],
    ids=lambda config: config.model_type,
)
def test_a_plan_is_tried_on_a_toy(config: PretrainedConfig) -> None:
    try_plans(config, byte_tokenizer(), [(REMOVED,)])


def test_a_norm_with_a_bias_behind_a_sublayer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a post-norm that is a LayerNorm."""
    from transformers.models.olmo2 import modeling_olmo2

    monkeypatch.setattr(modeling_olmo2, "Olmo2RMSNorm", lambda size, eps: torch.nn.LayerNorm(size, eps=eps))
    with pytest.raises(BadInputError, match="does not pass on what it gets"):
        try_plans(FAMILIES["olmo2"], byte_tokenizer(), [(REMOVED,)])
