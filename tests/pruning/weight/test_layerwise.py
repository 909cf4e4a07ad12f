"""Models with single weights pruned: block behind block, every way of loading, export."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PretrainedConfig, PreTrainedModel

from shortened_llm.config import JointRefit, WeightPruning
from shortened_llm.criteria.weight.allocation import AlphaOptions
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.export import export_view
from shortened_llm.models.linears import as_matrix, linear_layers
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import fill_shards
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import empty_view, size_of
from shortened_llm.pruning.weight import shares
from shortened_llm.pruning.weight.barber import rebuilt
from shortened_llm.pruning.weight.dsnot import dsnot
from shortened_llm.pruning.weight.job import WeightsJob
from shortened_llm.pruning.weight.pattern import parse_pattern
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.records import (
    BlocksTransform,
    ModelRef,
    Transform,
    WeightsTransform,
    WidthsTransform,
    from_json,
    of_kind,
    to_json,
)
from shortened_llm.storage.store import Store
from tests.conftest import SaveModel
from tests.models.families import FAMILIES
from tests.pruning.conftest import LENGTH, saved

CONFIGS: dict[str, PretrainedConfig] = FAMILIES | {
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_inner=48, n_layer=6, n_head=4, n_positions=128)
}


def job_for(
    ref: ModelRef,
    documents: Documents,
    criterion: str,
    *transforms: Transform,
    pattern: str = "unstructured",
    **settings: object,
) -> WeightsJob:
    entry = WeightPruning(unit="weight", criteria=[criterion], pattern=pattern, **settings)  # type: ignore[arg-type]
    return WeightsJob(
        model=ref, transforms=transforms, recipe=Recipe.of(entry, criterion, parse_pattern(pattern, 0.5)),
        documents=documents, calibration=documents.source, dtype="float32",  # type: ignore[arg-type]
    )  # fmt: skip


def pruned(job: WeightsJob, store: Store) -> ModelRef:
    job.compute(store, device="cpu", memory_gib=None)
    found = job.stored(store)
    assert found is not None
    assert from_json(WeightsTransform, to_json(found)) == found
    return job.model.view((*job.transforms, found))


def logits(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.randint(3, 97, (3, LENGTH), generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


def zeros(model: PreTrainedModel) -> list[int]:
    return [
        sum(int((layer.get_parameter("weight") == 0).sum()) for layer in linear_layers(block).values())
        for block in find_blocks(model)
    ]


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gemma2", "olmo2"])
@pytest.mark.parametrize(
    ("criterion", "pattern"), [("wanda", "2:4"), ("sparsegpt", "unstructured"), ("magnitude", "4:8")]
)
def test_every_way_of_loading_has_the_zeros(
    family: str, criterion: str, pattern: str, save_random_model: SaveModel, documents: Documents, local_store: Store,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Behind a block that went; half of the weights of the others, to the weight."""
    model, _ = save_random_model(CONFIGS[family])
    ref = saved(model, tmp_path / family)
    kept = tuple(index for index in range(model.config.num_hidden_layers) if index != 1)
    view = pruned(job_for(ref, documents, criterion, BlocksTransform(kept=kept), pattern=pattern), local_store)
    weights = of_kind(view.transforms, WeightsTransform)
    assert weights is not None
    assert [block for block, _ in weights.blocks] == list(kept)
    loaded = load_model(view, "float32")
    assert tuple(zeros(loaded)) == weights.zeros
    size = size_of(model.config, "float32")
    assert size.linear_parameters is not None
    assert [2 * number for number in weights.zeros] == [size.linear_parameters[block] for block in kept]
    after = size.after(view.transforms)
    assert after.parameters == sum(weight.numel() for weight in loaded.parameters())
    assert after.parameters - after.nonzero_parameters == sum(weights.zeros)
    for index, block in enumerate(find_blocks(loaded)):
        dense = dict(find_blocks(model)[kept[index]].named_parameters())
        for name, weight in block.named_parameters():
            own, before = weight.detach(), dense[name].detach()
            if criterion != "sparsegpt":
                assert torch.equal(own, torch.where(own == 0, 0, before))
            elif weight.dim() == 1:
                assert torch.equal(own, before)

    sharded = empty_view(view)
    fill_shards(sharded, view, device="cpu")
    assert torch.equal(logits(sharded.eval()), logits(loaded))
    streamed = StreamedModel.open(view, "float32")
    for index, block in streamed.read_blocks(range(streamed.num_blocks)):
        own_block = dict(find_blocks(loaded)[index].named_parameters())
        assert all(torch.equal(weight, own_block[name]) for name, weight in block.named_parameters())
    export_view(view, tmp_path / "out", "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(logits(plain), logits(loaded))
    exported = view.exported(url=str(tmp_path / "out"), fingerprint="x", files=())
    left = of_kind(exported.transforms, WeightsTransform)
    assert left is not None  # whoever trains it must hold them
    assert (left.payload, left.zeros) == (None, weights.zeros)
    assert exported.parents == ("x",)
    again = load_model(exported, "float32")
    assert tuple(zeros(again)) == weights.zeros
    assert torch.equal(logits(again), logits(loaded))


def rows_of(documents: Documents) -> torch.Tensor:
    rows = [json.loads(line)["input_ids"] for line in Path(documents.files[0]).read_text().splitlines()]
    return torch.tensor(rows)


def read_by(module: nn.Module, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False)
    hook.remove()
    return seen[0].flatten(0, 1).double()


def test_each_block_is_pruned_by_what_it_reads_behind_the_pruned_ones(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    loaded = load_model(pruned(job_for(ref, documents, "wanda"), local_store), "float32")
    tokens, reference = rows_of(documents), load_model(ref, "float32")
    for index, block in enumerate(find_blocks(reference)):
        masks = {}
        for name, layer in linear_layers(block).items():
            score = layer.weight.detach().double().abs() * read_by(layer, reference, tokens).norm(dim=0)  # type: ignore[operator]
            masks[name] = score.argsort(dim=1).argsort(dim=1) >= score.shape[1] // 2
        with torch.no_grad():
            for name, layer in linear_layers(block).items():
                layer.get_parameter("weight").mul_(masks[name])
                found = find_blocks(loaded)[index].get_submodule(name).weight != 0
                assert torch.equal(found, masks[name]), (index, name)


def test_masks_take_a_bit_for_each_weight(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    masked, changed = (job_for(ref, documents, criterion) for criterion in ("magnitude", "sparsegpt"))
    sizes = []
    for job in (masked, changed):
        tensors = of_kind(pruned(job, local_store).transforms, WeightsTransform)
        assert tensors is not None
        assert tensors.payload is not None
        sizes.append(sum(file.num_bytes for file in tensors.payload.files))
    assert sizes[0] < sizes[1] / 15  # of 32 bits, with the headers of small files
    assert masked.identity != changed.identity
    assert masked.identity == replace(masked, documents=None).identity, "it reads no text"


def test_narrow_models_lose_single_weights_too(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    narrow = WidthsTransform.keeping(
        num_groups=2, num_channels=48, channels={block: range(40) for block in range(model.config.num_hidden_layers)}
    )
    view = pruned(job_for(ref, documents, "wanda", narrow, pattern="2:4"), local_store)
    loaded = load_model(view, "float32")
    assert loaded.config.intermediate_size == 40
    down = find_blocks(loaded)[2].mlp.down_proj.weight
    assert ((down != 0).reshape(-1, 4).sum(dim=1) == 2).all()
    with pytest.raises(BadInputError, match=r"pruning\.pattern: is 4:9, but self_attn\.q_proj has 32 inputs"):
        job_for(ref, documents, "wanda", pattern="4:9").compute(local_store, device="cpu", memory_gib=None)


def test_shares_of_blocks_follow_from_their_spectra(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    """Half of all weights go, fewer of a block whose matrices have heavy tails."""
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for layer in linear_layers(find_blocks(model)[2]).values():
            weight = layer.get_parameter("weight")
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            values[:] = values[0] * torch.arange(1, len(values) + 1) ** -1.5
            weight.copy_(left @ torch.diag(values) @ right)
    ref = saved(model, tmp_path / "model")
    job = job_for(ref, documents, "wanda", allocation="alpha", alpha=AlphaOptions(epsilon=0.3))
    found = zeros(load_model(pruned(job, local_store), "float32"))
    sizes = size_of(model.config, "float32").linear_parameters
    assert sizes is not None
    assert sum(found) / sum(sizes) == pytest.approx(0.5, abs=0.02)  # each row is rounded down
    assert min(found) == found[2] < 0.75 * sorted(found)[1]
    assert job.identity != job_for(ref, documents, "wanda").identity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "spectral_exponent", None)  # it is not measured again
        other = job_for(ref, documents, "magnitude", allocation="alpha", alpha=AlphaOptions(epsilon=0.1))
        assert min(zeros(load_model(pruned(other, local_store), "float32"))) > min(found)


@pytest.mark.parametrize("criterion", ["magnitude", "sparsegpt"])
def test_refit_makes_the_most_of_a_mask(
    criterion: str, save_random_model: SaveModel, documents: Documents, store: Store, tmp_path: Path
) -> None:
    """In the first block, whose inputs are the dense model's: the mask stays, and the outputs are nearer."""
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    job = job_for(ref, documents, criterion)
    refitted = job_for(ref, documents, criterion, refit=JointRefit(damping=1e-6))
    plain, better = (load_model(pruned(one, store), "float32") for one in (job, refitted))
    for name, layer in linear_layers(find_blocks(model)[0]).items():
        inputs, dense = read_by(layer, model, rows_of(documents)), layer.get_parameter("weight").detach().double()
        found = [find_blocks(one)[0].get_submodule(name).get_parameter("weight").detach() for one in (plain, better)]
        assert torch.equal(found[0] == 0, found[1] == 0)
        losses = [(inputs @ (dense - one.double()).T).square().sum().item() for one in found]
        assert losses[1] < losses[0], name


def test_conv1d_is_masked_along_its_inputs(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(CONFIGS["gpt2"])
    view = pruned(job_for(saved(model, tmp_path / "gpt2"), documents, "wanda", pattern="2:4"), local_store)
    layer = find_blocks(load_model(view, "float32"))[0].mlp.c_fc
    matrix = as_matrix(layer, layer.weight.detach())
    assert matrix.shape == (48, 32)
    assert ((matrix != 0).reshape(-1, 4).sum(dim=1) == 2).all()
    np.testing.assert_array_equal((layer.weight != 0).sum(dim=0).numpy(), 16)


def layer_masks(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": as_matrix(layer, layer.get_parameter("weight").detach()) != 0
        for index, block in enumerate(find_blocks(model))
        for name, layer in linear_layers(block).items()
    }


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gemma2"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize(
    "refine",
    [
        {"refine": "dsnot", "dsnot": {"layers": "both", "threshold": 0.0}},
        {"refine": "dsnot", "dsnot": {"threshold": 0.0}},
        {"refine": "barber", "barber": {"rate": 0.5}},
    ],
    ids=["dsnot-both", "dsnot", "barber"],
)
def test_refined_masks_hold_other_weights_as_they_were(
    family: str, pattern: str, refine: dict, save_random_model: SaveModel, documents: Documents, local_store: Store,
    tmp_path: Path,
) -> None:  # fmt: skip
    """As many of each row and group, and all others are those of the model, whatever the criterion does to them."""
    model, _ = save_random_model(CONFIGS[family])
    ref = saved(model, tmp_path / family)
    job = job_for(ref, documents, "mrp", pattern=pattern, **refine)
    assert not job.recipe.changes_weights
    loaded, plain = (
        load_model(pruned(one, local_store), "float32")
        for one in (job, job_for(ref, documents, "mrp", pattern=pattern))
    )
    dense = dict(model.named_parameters())
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, torch.where(weight == 0, 0, dense[name].to(weight.dtype)))
    masks, before = layer_masks(loaded), layer_masks(plain)
    moved = {name for name in masks if not torch.equal(masks[name], before[name])}
    for name, mask in masks.items():
        size = 4 if pattern == "2:4" else mask.shape[1]
        assert torch.equal(mask.reshape(-1, size).sum(dim=1), before[name].reshape(-1, size).sum(dim=1))
    parts = {name.split(".")[1] for name in moved if name.startswith("0.")}
    is_attention_alone = refine["refine"] == "dsnot" and "layers" not in refine["dsnot"]
    assert len(parts) == (1 if is_attention_alone else 2)
    transform = job.stored(local_store)
    assert transform is not None
    assert refine["refine"] in transform.words
    first = sum(int((masks[name] & ~before[name]).sum()) for name in masks if name.startswith("0."))
    assert (transform.exchanged or 0) >= first > 0


def test_refined_masks_are_refitted(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    settings = {"refine": "barber", "barber": {"rate": 1.0, "granularity": "matrix"}}
    plain, refitted = (
        job_for(ref, documents, "wanda", **settings, **refit) for refit in ({}, {"refit": JointRefit(damping=1e-6)})
    )
    masks = [layer_masks(load_model(pruned(job, local_store), "float32")) for job in (plain, refitted)]
    first = [name for name in masks[0] if name.startswith("0.")]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in first)
    assert refitted.recipe.names == ("unstructured", "wanda", "barber", "refitted")


def test_blocks_whose_weights_stand_out_lose_less(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for layer in linear_layers(find_blocks(model)[3]).values():
            layer.get_parameter("weight")[:, ::8] *= 30
    ref = saved(model, tmp_path / "model")
    job = job_for(ref, documents, "magnitude", allocation="owl")
    assert job.recipe.reads_text
    found = zeros(load_model(pruned(job, local_store), "float32"))
    sizes = size_of(model.config, "float32").linear_parameters
    assert sizes is not None
    assert sum(found) / sum(sizes) == pytest.approx(0.5, abs=1e-3)
    assert min(found) == found[3] < 0.8 * sorted(found)[1]


def test_dsnot_is_told_means_and_variances_of_sequences(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    """In the first block, written out: the mean over sequences of their sums, and of their own variances."""
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    settings = {"threshold": 0.02, "layers": "both"}
    loaded = load_model(
        pruned(job_for(ref, documents, "wanda", refine="dsnot", dsnot=settings), local_store), "float32"
    )
    tokens, masks = rows_of(documents), layer_masks(loaded)
    exchanged = 0
    for name, layer in linear_layers(find_blocks(model)[0]).items():
        weight = layer.get_parameter("weight").detach().double()
        read = read_by(layer, model, tokens).reshape(len(tokens), -1, weight.shape[1])
        norms = read.flatten(0, 1).norm(dim=0)
        pattern = parse_pattern("unstructured", 0.5)
        kept = pattern.lowest_in_rows(weight.abs() * norms)
        wanted = dsnot(
            weight, kept, pattern, means=read.sum(dim=1).mean(dim=0),
            variances=torch.stack([one.var(dim=0, correction=0) for one in read]).mean(dim=0),
            norms=norms, cycles=50, threshold=0.02, power=1.0, accept="improving",
        )  # fmt: skip
        assert torch.equal(masks[f"0.{name}"], wanted), name
        exchanged += int((wanted & ~kept).sum())
    assert exchanged > 20


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_barber_is_told_gradients_of_attention_and_then_of_the_mlp(
    pattern: str, save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    """In the first block, written out: the MLP reads what the attention gives with its refined masks."""
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    job = job_for(ref, documents, "wanda", pattern=pattern, refine="barber", barber={"rate": 1.0})
    masks, base, tokens = layer_masks(load_model(pruned(job, local_store), "float32")), {}, rows_of(documents)
    block, own = find_blocks(model)[0], parse_pattern(pattern, 0.5)
    for name, layer in linear_layers(block).items():
        weight = layer.get_parameter("weight").detach().double()
        base[name] = own.lowest_in_rows(weight.abs() * read_by(layer, model, tokens).norm(dim=0))
    for part in ("self_attn", "mlp"):
        module, squares = block.get_submodule(part), {}
        layers = {name: layer for name, layer in linear_layers(block).items() if name.startswith(part)}
        dense = {name: layer.get_parameter("weight").detach().clone() for name, layer in layers.items()}
        for row in tokens.split(1):
            calls: list[tuple] = []
            hook = module.register_forward_pre_hook(lambda _, *given, to=calls: to.append(given), with_kwargs=True)
            model(input_ids=row, use_cache=False)
            hook.remove()
            outputs = []
            for kept in (base, None):
                for name, layer in layers.items():
                    weight = dense[name] * kept[name] if kept else dense[name].clone()
                    layer.weight = nn.Parameter(weight)
                given = module(*calls[0][0], **calls[0][1])
                outputs.append(given[0] if isinstance(given, tuple) else given)
            (outputs[1] - outputs[0].detach()).square().mean().backward()
            for name, layer in layers.items():
                squares[name] = squares.get(name, 0) + layer.get_parameter("weight").grad.square() / len(tokens)
        importance = {name: dense[name].abs() * squares[name].sqrt() for name in layers}
        wanted = rebuilt({name: base[name] for name in layers}, importance, own, rate=1.0, granularity="row")
        for name, layer in layers.items():
            agreement = (masks[f"0.{name}"] == wanted[name]).float().mean()
            assert agreement > 0.999, (name, agreement)
            assert not torch.equal(wanted[name], base[name])
            layer.weight = nn.Parameter(dense[name] * masks[f"0.{name}"])


def test_other_layers_may_read_all_sequences_as_one(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path
) -> None:
    """Those of OPT's MLP."""
    config = OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=128,
    )  # fmt: skip
    model, _ = save_random_model(config)
    ref = saved(model, tmp_path / "model")
    job = job_for(ref, documents, "wanda", refine="dsnot", dsnot={"threshold": 0.0})
    pruned(job, local_store)
    found = job.stored(local_store)
    assert found is not None
    assert found.exchanged
    with pytest.raises(BadInputError, match="no module for its mlp"):
        pruned(job_for(ref, documents, "wanda", refine="barber"), local_store)


def test_too_little_text_for_a_layer_is_said(
    save_random_model: SaveModel, documents: Documents, local_store: Store, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Where it matters: wanda reads each input by itself."""
    model, _ = save_random_model(FAMILIES["llama"])
    ref = saved(model, tmp_path / "model")
    few = documents.source.model_copy(update={"num_sequences": 2})
    for criterion, refit in (("wanda", {}), ("sparsegpt", {}), ("wanda", {"refit": {}})):
        caplog.clear()
        pruned(replace(job_for(ref, documents, criterion, **refit), calibration=few), local_store)
        assert ("32 tokens do not tell apart the 48 inputs" in caplog.text) == (criterion == "sparsegpt" or bool(refit))
