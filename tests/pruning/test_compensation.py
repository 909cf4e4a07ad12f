"""Narrowed models whose output projections make up for what is gone: planted structure, loading, export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel

from shortened_llm.config import Refit
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.models.axes import axes_of, widths_of
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.export import export_view
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import fill_shards
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import empty_view, size_of
from shortened_llm.pruning.compensation import CompensationJob
from shortened_llm.records import (
    BlocksTransform,
    ModelRef,
    TensorsTransform,
    Transform,
    WidthsTransform,
    from_json,
    of_kind,
    to_json,
)
from shortened_llm.storage.store import Store
from tests.conftest import SaveModel
from tests.models.families import COMMON, FAMILIES
from tests.pruning.conftest import LENGTH, saved

CONFIGS: dict[str, PretrainedConfig] = FAMILIES | {
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_inner=48, n_layer=6, n_head=4, n_positions=128)
}
MLP_BIAS: PretrainedConfig = LlamaConfig(**COMMON | {"mlp_bias": True})
ALMOST_NONE = Refit(damping=(1e-10,))


def without_channels(config: PretrainedConfig, removed: dict[int, set[int]]) -> WidthsTransform:
    widths = widths_of(config)
    every = range(widths.channels)
    return WidthsTransform.keeping(
        num_groups=widths.groups,
        num_channels=widths.channels,
        channels={block: set(every) - gone for block, gone in removed.items()},
    )


def job_for(ref: ModelRef, documents: Documents, *transforms: Transform, **options: object) -> CompensationJob:
    asked = {"refit": None, "bias": False} | options
    return CompensationJob(
        model=ref, transforms=transforms, documents=documents, calibration=documents.source, dtype="float32", **asked
    )  # type: ignore[arg-type]


def compensated(job: CompensationJob, store: Store) -> ModelRef:
    assert job.stored(store) is None
    job.compute(store, device="cpu", memory_gib=None)
    tensors = job.stored(store)
    assert tensors is not None
    assert from_json(TensorsTransform, to_json(tensors)) == tensors
    return job.model.view((*job.transforms, tensors))


def logits(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.randint(3, 97, (3, LENGTH), generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def plant(model: PreTrainedModel, copies: dict[int, set[int]]) -> None:
    """Make some channels of blocks copies of others, as far as what they carry goes."""
    row, widths = axes_of(model.config), widths_of(model.config)
    for index, block in enumerate(find_blocks(model)):
        for axis in row.channels[:-1]:
            if axis.tensor in dict(block.named_parameters()):
                tensor = block.get_parameter(axis.tensor)
                for copy in copies.get(index, ()):
                    source, target = (
                        torch.tensor(axis.positions(tensor.shape[axis.dim], widths, [unit], widths.channels))
                        for unit in (20 + copy, copy)
                    )
                    tensor.index_copy_(axis.dim, target, tensor.index_select(axis.dim, source))


@torch.no_grad()
def test_copies_of_channels_are_removed_without_a_trace(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    """In every family, and whichever way its down projection is stored: what a copy carried is put on its original."""
    for family in ("llama", "phi3", "qwen2", "gpt2", "gpt_neox", "olmo2"):
        model, _ = save_random_model(CONFIGS[family])
        copies = {block: {2 + block, 7, 12} for block in range(model.config.num_hidden_layers)}
        plant(model, copies)
        ref = saved(model, tmp_path / family)
        transform = without_channels(model.config, copies)
        plain = logits(load_model(ref.view((transform,)), "float32"))
        view = compensated(job_for(ref, documents, transform, refit=ALMOST_NONE), local_store)
        found = logits(load_model(view, "float32"))
        assert (plain - logits(model)).abs().max() > 1e-3, family
        torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_constant_channel_is_removed_without_a_trace_by_a_bias(
    save_random_model: SaveModel, documents: Documents, store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(MLP_BIAS)
    constant = {0: {1, 5}, 1: {3, 4}}
    for index, channels in constant.items():
        mlp = find_blocks(model)[index].mlp
        for channel in channels:
            mlp.gate_proj.weight[channel], mlp.up_proj.weight[channel] = 0, 0
            mlp.gate_proj.bias[channel], mlp.up_proj.bias[channel] = 1 + channel, 2
    ref = saved(model, tmp_path / "model")
    transform = without_channels(model.config, constant)
    assert (logits(load_model(ref.view((transform,)), "float32")) - logits(model)).abs().max() > 1e-3
    for refit in (None, Refit(damping=(0.1,))):
        view = compensated(job_for(ref, documents, transform, bias=True, refit=refit), store)
        tensors = of_kind(view.transforms, TensorsTransform)
        assert tensors is not None
        assert (tensors.config_fields, tensors.added) == ((), 0)
        torch.testing.assert_close(logits(load_model(view, "float32")), logits(model), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("is_uniform", [True, False])
def test_every_way_of_loading_reads_the_new_tensors(
    family: str,
    is_uniform: bool,
    save_random_model: SaveModel,
    documents: Documents,
    local_store: Store,
    tmp_path: Path,
) -> None:
    """Behind blocks that went, with biases where the family can have them, and narrow blocks padded to the widest."""
    model, _ = save_random_model(CONFIGS[family])
    kept = tuple(index for index in range(model.config.num_hidden_layers) if index != 1)
    plant(model, {block: {0, 1, 2} for block in kept})
    ref = saved(model, tmp_path / family)
    widths = without_channels(model.config, {b: set(range(3 + (0 if is_uniform else b))) for b in kept})
    blocks = BlocksTransform(kept=kept)
    options = {"refit": Refit(damping=(0.001,)), "bias": True}
    view = compensated(job_for(ref, documents, blocks, widths, **options), local_store)
    tensors = of_kind(view.transforms, TensorsTransform)
    assert tensors is not None
    assert tensors.config_fields == (("mlp_bias",) if family == "llama" else ())
    assert [block for block, _ in tensors.blocks] == list(kept)
    narrowed = ref.view((blocks, widths))
    assert view.identity != narrowed.identity

    loaded = load_model(view, "float32")
    assert (logits(loaded) - logits(load_model(narrowed, "float32"))).abs().max() > 1e-4
    size = size_of(model.config, "float32").after(view.transforms)
    assert size.num_bytes == 4 * sum(weight.numel() for weight in loaded.parameters())
    sharded = empty_view(view)
    fill_shards(sharded, view, device="cpu")
    assert torch.equal(logits(sharded.eval()), logits(loaded))
    streamed = StreamedModel.open(view, "float32")
    for index, block in streamed.read_blocks(range(streamed.num_blocks)):
        own = dict(find_blocks(loaded)[index].named_parameters())
        assert all(torch.equal(weight, own[name]) for name, weight in block.named_parameters())

    export_view(view, tmp_path / "out", "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(logits(plain), logits(loaded))
    exported = view.exported(url=str(tmp_path / "out"), fingerprint="x", files=())
    assert exported.transforms == ()
    origin = of_kind(exported.origin or (), TensorsTransform)
    assert origin is not None
    assert origin.payload is None  # of which no other file must know


def test_what_is_stored_is_told_apart_and_needed(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    transform = without_channels(model.config, {0: {1}, 1: {2}})
    jobs = [
        job_for(ref, documents, transform, refit=Refit()),
        job_for(ref, documents, transform, refit=Refit(damping=(0.5,))),
        job_for(ref, documents, transform, bias=True),
        job_for(ref, documents, without_channels(model.config, {0: {1}, 1: {3}}), bias=True),
    ]
    views = [compensated(job, local_store) for job in jobs]
    assert len({str(view.identity) for view in views}) == len(jobs)
    moved = replace(views[0], url="elsewhere")
    tensors = of_kind(moved.transforms, TensorsTransform)
    assert tensors is not None
    assert tensors.payload is not None
    elsewhere = replace(tensors, payload=replace(tensors.payload, url="elsewhere"))
    assert moved.view((transform, elsewhere)).identity == views[0].identity
    assert views[0].parents == (ref.fingerprint, jobs[0].fingerprint)
    assert [payload.url for payload in views[0].payloads] == [ref.url, tensors.payload.url]
    Path(tensors.payload.url, tensors.payload.files[0].path).unlink()
    assert jobs[0].stored(local_store) is None  # and would be computed again


def test_what_cannot_be_done_is_refused(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    job = job_for(ref, documents, without_channels(model.config, {0: {1}}), refit=Refit())
    with pytest.raises(BadInputError, match=r"calibration\.num_sequences: refit and bias keep"):
        job.compute(local_store, device="cpu", memory_gib=1e-6)
    with torch.no_grad():
        find_blocks(model)[0].mlp.down_proj.weight.fill_(torch.inf)
    broken = saved(model, tmp_path / "broken")
    with pytest.raises(NonFiniteLossError, match="block 0"):
        replace(job, model=broken).compute(local_store, device="cpu", memory_gib=None)
    assert not list(Path(local_store.url).glob("compensations/*/record.json"))
