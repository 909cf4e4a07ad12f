"""Heads and channels are removed from every family with a row of axes: masked, zeroed and sliced models are equal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, GraniteConfig, PretrainedConfig, PreTrainedModel

from jobs.assets.tiny import byte_tokenizer
from shortened_llm.errors import BadInputError
from shortened_llm.models.axes import AXES, axes_of, widths_of
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.export import export_view
from shortened_llm.models.load import load_model
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import check_transforms, size_of, view_config
from shortened_llm.records import (
    BlocksTransform,
    SublayersTransform,
    Transform,
    WidthsTransform,
    from_json,
    to_json,
)
from shortened_llm.search.preflight_toy import try_plans
from tests.conftest import SaveModel, reference_to
from tests.models.families import COMMON, FAMILIES, INDEXED

TOKENS = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
BLOCKS = range(6)
CONFIGS: dict[str, PretrainedConfig] = {
    name: config for name, config in (FAMILIES | INDEXED).items() if config.model_type in AXES
} | {
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_inner=48, n_layer=6, n_head=4, n_positions=128),
    "gemma": GemmaConfig(**COMMON, head_dim=8),
    "granite": GraniteConfig(**COMMON),
    "llama_biased": FAMILIES["llama"].__class__(**COMMON, attention_bias=True, mlp_bias=True, head_dim=16),
}


def widths(
    config: PretrainedConfig,
    groups: Mapping[int, Sequence[int]] | None = None,
    channels: Mapping[int, Sequence[int]] | None = None,
) -> WidthsTransform:
    own = widths_of(config)
    groups = None if isinstance(axes_of(config).groups, str) else groups
    return WidthsTransform.keeping(num_groups=own.groups, num_channels=own.channels, groups=groups, channels=channels)


def even(config: PretrainedConfig) -> WidthsTransform:
    """Half of the groups, other ones in each block, and 30 of 48 channels."""
    half = widths_of(config).groups // 2
    groups = {block: [(block + index) % (2 * half) for index in range(half)] for block in BLOCKS}
    return widths(config, groups, {block: range(block, block + 30) for block in BLOCKS})


def uneven(config: PretrainedConfig) -> WidthsTransform:
    """Only some blocks become narrower, each to a width of its own."""
    return widths(config, {1: [1]}, {0: range(8, 48), 1: range(13), 3: [47]})


def output_projections(block: nn.Module, config: PretrainedConfig) -> list[nn.Module]:
    row = axes_of(config)
    axes = [row.channels] if isinstance(row.groups, str) else [row.groups, row.channels]
    return [block.get_submodule(one[-1].tensor.removesuffix(".weight")) for one in axes]


def masking(model: PreTrainedModel, transform: WidthsTransform) -> PreTrainedModel:
    """The reference: hooks put zeros into what the output projections read of removed heads and channels."""
    config = model.config
    own = widths_of(config)
    for index, block in enumerate(find_blocks(model)):
        keeps = [transform.kept_channels(index)]
        if not isinstance(axes_of(config).groups, str):
            per_group = own.queries_per_group * own.head_dim
            heads = [g * per_group + i for g in transform.kept_groups(index) for i in range(per_group)]
            keeps.insert(0, tuple(heads))
        for projection, kept in zip(output_projections(block, config), keeps, strict=True):

            def mask(_: object, inputs: tuple[torch.Tensor], kept: tuple[int, ...] = kept) -> tuple[torch.Tensor]:
                masked = torch.zeros_like(inputs[0])
                masked[..., list(kept)] = inputs[0][..., list(kept)]
                return (masked,)

            projection.register_forward_pre_hook(mask)
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("make", [even, uneven])
def test_masked_and_sliced_models_are_equal(family: str, make, save_random_model: SaveModel, tmp_path: Path) -> None:
    model, ref = save_random_model(CONFIGS[family])
    byte_tokenizer().save_pretrained(ref.url)
    transform = make(CONFIGS[family])
    check_transforms(view_config(ref), (transform,))
    view = load_model(ref.view((transform,)), "float32")
    wanted = logits(masking(model, transform))
    torch.testing.assert_close(logits(view), wanted, rtol=1e-5, atol=1e-5)
    size = size_of(view_config(ref), "float32").after((transform,))
    parameters = sum(weight.numel() for weight in view.parameters())
    assert size.num_bytes == 4 * parameters
    assert (size.parameters == parameters) == (make is even)

    export_view(ref.view((transform,)), tmp_path, "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits(plain), logits(view))
    assert sum(weight.numel() for weight in plain.parameters()) == parameters
    cached, uncached = (
        plain.generate(TOKENS, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("family", CONFIGS)
def test_dead_units_take_nothing_with_them(family: str, save_random_model: SaveModel, tmp_path: Path) -> None:
    """Channels and heads whose output columns are zero: no logit moves when they go."""
    config = CONFIGS[family]
    model, _ = save_random_model(config)
    transform, own = even(config), widths_of(config)
    with torch.no_grad():
        for index, block in enumerate(find_blocks(model)):
            tensors, row = dict(block.named_parameters()), axes_of(config)
            for axes, kept, units in (
                (row.groups, transform.kept_groups(index), own.groups),
                (row.channels, transform.kept_channels(index), own.channels),
            ):
                if not isinstance(axes, str):
                    gone = sorted(set(range(units)) - set(kept))
                    weight = tensors[axes[-1].tensor]
                    positions = axes[-1].positions(weight.shape[axes[-1].dim], own, gone, units)
                    weight.index_fill_(axes[-1].dim, torch.tensor(positions), 0)
    model.save_pretrained(tmp_path / "dead")
    view = load_model(reference_to(tmp_path / "dead").view((transform,)), "float32")
    torch.testing.assert_close(logits(view), logits(model), rtol=1e-5, atol=1e-5)


def test_widths_go_with_blocks_and_sublayers(save_random_model: SaveModel, tmp_path: Path) -> None:
    model, ref = save_random_model(FAMILIES["llama"])
    byte_tokenizer().save_pretrained(ref.url)
    narrow = even(FAMILIES["llama"])
    transforms: tuple[Transform, ...] = (
        BlocksTransform(kept=(0, 1, 3, 5)), SublayersTransform.without([(1, "mlp")]), narrow
    )  # fmt: skip
    view = ref.view(transforms)
    loaded = load_model(view, "float32")
    assert (loaded.config.num_hidden_layers, loaded.config.intermediate_size) == (4, 30)
    blocks = find_blocks(masking(model, narrow))
    blocks[1].mlp.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    for block in (2, 4):
        blocks[block].self_attn.register_forward_hook(lambda _, __, output: (torch.zeros_like(output[0]), None))
        blocks[block].mlp.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)

    export_view(view, tmp_path, "float32")
    exported = view.exported(url=str(tmp_path), fingerprint="exported", files=())
    assert exported.transforms == (SublayersTransform.without([(1, "mlp")]),)
    assert torch.equal(logits(load_model(exported, "float32")), logits(loaded))
    assert exported.origin is not None
    again = widths(loaded.config, None, {0: range(5)})
    twice = exported.view((*exported.transforms, again)).shortening
    assert twice is not None
    found = next(transform for transform in twice if isinstance(transform, WidthsTransform))
    assert found.kept_channels(0) == (0, 1, 2, 3, 4)
    assert found.kept_channels(5) == narrow.kept_channels(5)
    assert size_of(view_config(ref), "float32").after(transforms).num_bytes == sum(
        4 * weight.numel() for weight in AutoModelForCausalLM.from_pretrained(tmp_path).parameters()
    )


def test_a_streamed_view_is_the_loaded_one(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["qwen3"])
    view = ref.view((uneven(FAMILIES["qwen3"]),))
    whole = load_model(view, "float32")
    for index, block in StreamedModel.open(view, "float32").read_blocks(BLOCKS):
        for name, weight in find_blocks(whole)[index].named_parameters():
            assert torch.equal(weight, block.get_parameter(name))


def test_a_transform_is_one_of_its_kind_and_a_record() -> None:
    config = FAMILIES["llama"]
    transforms = [even(config), uneven(config), widths(config, {0: [0]}, None), widths(config, None, {0: range(47)})]
    assert len({to_json(transform) for transform in transforms}) == 4
    assert all(from_json(WidthsTransform, to_json(transform)) == transform for transform in transforms)
    assert not widths(config, {0: [1, 0]}, {3: range(48)}).changes(6)
    assert transforms[0].describe(6) == "with kv_heads 1 of 2 and channels 30 of 48 in each block"
    assert transforms[1].facts(6) == {"kept_kv_heads": "1 to 2 of 2", "kept_channels": "1 to 48 of 48"}
    assert even(config).renumbered({5: 0, 2: 1}).kept_channels(0) == tuple(range(5, 35))


@pytest.mark.parametrize(
    ("config", "transform", "words"),
    [
        (FAMILIES["mixtral"], WidthsTransform(num_groups=2, num_channels=48), "known are llama, mistral"),
        (
            FAMILIES["olmo2"],
            WidthsTransform.keeping(num_groups=2, num_channels=48, groups={0: [0]}),
            "the heads of olmo2 models cannot go: a norm over all of its heads",
        ),
        (
            FAMILIES["llama"],
            WidthsTransform.keeping(num_groups=2, num_channels=48, channels={4: []}),
            "block 4 would keep no head or no channel",
        ),
    ],
)
def test_what_cannot_be_narrowed_is_refused(config: PretrainedConfig, transform: WidthsTransform, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        check_transforms(config, (transform,))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_plan_is_tried_on_a_toy(family: str, save_random_model: SaveModel) -> None:
    config = CONFIGS[family]
    if family == "llama_biased":
        pytest.skip("the head of its toy has another size")
    try_plans(config, byte_tokenizer(), [(even(config),), (uneven(config),)])
