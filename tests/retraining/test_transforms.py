"""Models without some sub-layers, heads or channels are trained, stopped, gone on with and exported as others are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shortened_llm.config import CalibrationConfig, WeightPruning
from shortened_llm.models.load import load_model
from shortened_llm.models.parts import NoPart
from shortened_llm.pruning.weight.job import WeightsJob
from shortened_llm.pruning.weight.pattern import parse_pattern
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.records import BlocksTransform, SublayersTransform, WeightsTransform, WidthsTransform, of_kind
from shortened_llm.retraining.export import export_sharded, probe_logits
from shortened_llm.retraining.train import train
from shortened_llm.retraining.zeros import HeldZeros
from shortened_llm.storage.store import Store
from tests.conftest import MakeJob
from tests.retraining.conftest import Recorder

CPU = torch.device("cpu")
TRANSFORMS = (
    BlocksTransform(kept=(0, 1, 2, 4, 6, 7)),
    SublayersTransform.without([(0, "attention"), (2, "mlp"), (6, "attention")]),
)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", ["cpt", "lora", "distill", "scratch"])
def test_training_resumes_and_exports_zeros(make_job: MakeJob, local_store: Store, method: str) -> None:
    job = make_job(method, lora={"learning_rate": 3e-3})
    job = replace(job, model=job.model.view(TRANSFORMS))
    straight, resumed = Recorder(), Recorder()
    model, _ = train(job, device=CPU, resume_from=None, host=straight)
    again, _ = train(job, device=CPU, resume_from=straight.checkpoints[0].directory, host=resumed)
    assert sum(isinstance(module, NoPart) for module in model.modules()) == 3
    assert 0 < len(resumed.points) < len(straight.points)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor(), rtol=0, atol=1e-7)

    exported = export_sharded(model, job, local_store, rank=0)
    assert exported is not None
    left = SublayersTransform.without([(0, "attention"), (2, "mlp"), (4, "attention")])
    assert (exported.model.num_blocks, exported.model.transforms) == (6, (left,))
    assert exported.model.origin == TRANSFORMS
    loaded = load_model(exported.model, "float32")
    plain = AutoModelForCausalLM.from_pretrained(Path(exported.model.url), dtype=torch.float32).eval()
    tokens = torch.randint(3, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    kept = dict(loaded.named_parameters())
    removed = [weight for name, weight in plain.named_parameters() if name not in kept]
    assert removed
    assert not any(weight.any() for weight in removed)
    assert all(torch.equal(weight, kept[name]) for name, weight in plain.named_parameters() if name in kept)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", ["cpt", "distill", "lora"])
@pytest.mark.parametrize("criterion", ["magnitude", "sparsegpt"])
def test_zeros_are_held(make_job: MakeJob, local_store: Store, method: str, criterion: str) -> None:
    """In training, on resuming and in the export, to the weight; what is trained on from there holds them too. Adapters
    are trained as they are merged."""
    job = make_job(method, lora={"learning_rate": 3e-2})
    text = CalibrationConfig(path="rows", num_sequences=4, sequence_length=16)
    entry = WeightPruning(unit="weight", criteria=[criterion], pattern="2:4")
    recipe = Recipe.of(entry, criterion, parse_pattern("2:4"))
    masks = WeightsJob(model=job.model, transforms=(), recipe=recipe, documents=None, calibration=text, dtype="float32")
    tokens = torch.randint(3, 200, (4, 16), generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightsJob, "_tokens", lambda self, streamed: tokens if self.recipe.reads_text else None)
        masks.compute(local_store, device="cpu", memory_gib=None)
    found = masks.stored(local_store)
    assert found is not None
    job = replace(job, model=job.model.view((found,)))
    begins = dict(load_model(job.model, "float32").named_parameters())
    straight, resumed = Recorder(), Recorder()
    model, _ = train(job, device=CPU, resume_from=None, host=straight)
    again, _ = train(job, device=CPU, resume_from=straight.checkpoints[0].directory, host=resumed)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor(), rtol=0, atol=1e-7)
    exported = export_sharded(model, job, local_store, rank=0)
    assert exported is not None
    plain = AutoModelForCausalLM.from_pretrained(Path(exported.model.url), dtype=torch.float32).eval()
    moved = 0
    for name, weight in plain.named_parameters():
        if name.endswith("_proj.weight"):
            assert torch.equal(weight == 0, begins[name] == 0)
            moved += int((weight != begins[name]).sum())
    assert moved > 0.4 * sum(found.zeros)
    if method == "lora":
        trained, merged = probe_logits(model.eval()), probe_logits(plain)
        torch.testing.assert_close(trained, merged, rtol=0, atol=1e-4 * float(merged.abs().max()))
        begun = probe_logits(load_model(job.model, "float32"))
        assert (merged - begun).abs().max() > 0.01 * merged.abs().max()
        assert exported.adapter is None
    left = of_kind(exported.model.transforms, WeightsTransform)
    assert left is not None
    assert len(HeldZeros.of(load_model(exported.model, "float32"), exported.model).masks) == 8 * 7


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("method", "is_uniform"), [("cpt", True), ("lora", True), ("distill", True), ("cpt", False), ("distill", False)]
)
def test_narrowed_models_are_trained_and_exported(
    make_job: MakeJob, local_store: Store, method: str, is_uniform: bool
) -> None:
    """Where widths differ, the padding is zero before and after: it has no gradient. Adapters would fill it: the
    configuration refuses them."""
    job = make_job(method, lora={"learning_rate": 3e-3})
    first = {block: 0 if is_uniform else 3 * block for block in range(8)}
    channels = {block: range(start, 101) for block, start in first.items()}
    narrow = WidthsTransform.keeping(
        num_groups=2, num_channels=352, groups={block: [block % 2] for block in range(8)}, channels=channels
    )
    job = replace(job, model=job.model.view((narrow,)))
    straight, resumed = Recorder(), Recorder()
    model, _ = train(job, device=CPU, resume_from=None, host=straight)
    again, _ = train(job, device=CPU, resume_from=straight.checkpoints[0].directory, host=resumed)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor(), rtol=0, atol=1e-7)
    exported = export_sharded(model, job, local_store, rank=0)
    assert exported is not None
    assert (exported.model.transforms, exported.model.origin) == ((), (narrow,))
    plain = AutoModelForCausalLM.from_pretrained(Path(exported.model.url), dtype=torch.float32).eval()
    assert (plain.config.intermediate_size, plain.config.num_key_value_heads) == (101, 1)
    dense = load_model(job.model, "float32")
    for block in range(8):
        mlp = plain.model.layers[block].mlp
        kept = len(narrow.kept_channels(block))
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T):
            assert not weight[kept:].any()
        assert not torch.equal(mlp.down_proj.weight, dense.model.layers[block].mlp.down_proj.weight)
