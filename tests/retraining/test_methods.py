"""What each method trains, and that its loss and its export are what they say."""

import math

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import MambaConfig

from shortened_llm.data.batches import TrainingStream
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.models.build import empty_model
from shortened_llm.models.directory import load_config, model_directory
from shortened_llm.models.export import export_view
from shortened_llm.models.load import load_model
from shortened_llm.records import DistillOptions, ModelRef
from shortened_llm.retraining.adapters import adapter_targets, initial_adapter
from shortened_llm.retraining.checkpoint import CheckpointMismatchError, verify_checkpoint
from shortened_llm.retraining.distillation import distillation_loss
from shortened_llm.retraining.export import export_sharded
from shortened_llm.retraining.flops import training_flops
from shortened_llm.retraining.guard import Guard
from shortened_llm.retraining.prepare import freeze
from shortened_llm.retraining.schedule import learning_rate, stable_end
from shortened_llm.retraining.train import train
from shortened_llm.storage.payload import local_directory
from shortened_llm.storage.store import Store
from tests.conftest import MakeJob
from tests.models.families import INDEXED
from tests.retraining.conftest import Recorder

CPU = torch.device("cpu")


@pytest.mark.usefixtures("process_group")
def test_adapters_are_peft_s_own(make_job: MakeJob, local_store: Store, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The merged model equals peft's adapters on the pruned model, and only adapters were trained."""
    job = make_job("lora", lora={"learning_rate": 1e-2, "dropout": 0.0})
    model, _ = train(job, device=CPU, resume_from=None, host=Recorder())
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    exported = export_sharded(model, job, local_store, rank=0)
    assert exported is not None
    assert exported.adapter is not None
    export_view(job.model, tmp_path / "pruned", "float32")
    pruned = load_model(job.model, "float32")
    tokens = torch.arange(32)[None]
    before = pruned(input_ids=tokens).logits
    adapted = PeftModel.from_pretrained(pruned, local_directory(exported.adapter.url, exported.adapter.files)).eval()
    with_adapter = adapted(input_ids=tokens).logits
    merged = load_model(exported.model, "float32")(input_ids=tokens).logits
    torch.testing.assert_close(merged, with_adapter, rtol=1e-4, atol=1e-4)
    assert (merged - before).abs().max() > 0.05


@pytest.mark.usefixtures("process_group")
def test_every_method_lowers_the_held_out_loss(make_job: MakeJob) -> None:
    losses = {}
    for method in ("cpt", "lora", "distill", "last_blocks"):
        recorder = Recorder()
        train(
            make_job(method, tokens=16384, checkpoint_tokens=1024, lora={"learning_rate": 1e-2}),
            device=CPU, resume_from=None, host=recorder,
        )  # fmt: skip
        measured = [point.validation_loss for point in recorder.points if point.validation_loss is not None]
        assert measured[-1] < measured[0] - 0.05, method
        losses[method] = measured[-1]
    assert len(set(losses.values())) == 4


@pytest.mark.usefixtures("process_group")
def test_distillation_follows_the_dense_model(make_job: MakeJob) -> None:
    """The first step's loss against both models run whole, with temperature and the hard loss."""
    options = {"learning_rate": 1e-3, "temperature": 2.0, "hard_loss_weight": 0.5}
    job = make_job("distill", distill=options)
    recorder = Recorder()
    train(job, device=CPU, resume_from=None, host=recorder)
    assert job.teacher is not None
    stream = TrainingStream(job.tokens, job.recipe, micro_batch_size=8, rank=0, world_size=1)
    (batch,) = stream.step(0).micro_batches
    with torch.no_grad():
        student = load_model(job.model, "float32")(input_ids=batch.input_ids).logits[:, :-1].flatten(0, 1)
        teacher = load_model(job.teacher, "float32")(input_ids=batch.input_ids).logits[:, :-1].flatten(0, 1)
    targets = batch.input_ids[:, 1:].flatten()
    p = (teacher / 2).softmax(-1)
    divergence = (p * (p.log() - (student / 2).log_softmax(-1))).sum(-1).mean()
    wanted = 4 * divergence + 0.5 * F.cross_entropy(student, targets)
    assert recorder.points[0].loss == pytest.approx(wanted.item(), rel=1e-5)


def test_a_model_is_no_distance_from_itself() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 11), torch.tensor([1, 2, -100, 3, 4])
    options = DistillOptions(temperature=1.5, hard_loss_weight=0.0)
    assert distillation_loss(logits, logits, labels, options).abs().max() < 1e-6
    other = distillation_loss(logits, torch.randn(5, 11), labels, options)
    assert other[2] == 0
    assert (other[[0, 1, 3, 4]] > 0).all()


def test_targets_that_are_no_linear_layer_are_named(tiny_model: ModelRef) -> None:
    model = empty_model(load_config(model_directory(tiny_model)))
    assert adapter_targets(model, ("q_proj",)) == tuple(f"model.layers.{block}.self_attn.q_proj" for block in range(8))
    assert len(adapter_targets(model, ())) == 7 * 8
    with pytest.raises(BadInputError, match=r"'qproj'.*down_proj, gate_proj, k_proj"):
        adapter_targets(model, ("q_proj", "qproj"))


def test_adapters_begin_alike_everywhere() -> None:
    name, shape = "model.layers.0.self_attn.q_proj.lora_A.default.weight", torch.Size((8, 128))
    first = initial_adapter(name, shape, 0)
    assert torch.equal(first, initial_adapter(name, shape, 0))
    assert not torch.equal(first, initial_adapter(name, shape, 1))
    assert first.abs().max() <= 1 / math.sqrt(128)
    assert not initial_adapter(name.replace("lora_A", "lora_B"), torch.Size((128, 8)), 0).any()


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear"])
def test_the_learning_rate_warms_up_and_decays(make_job: MakeJob, schedule: str) -> None:
    options = {"schedule": schedule, "warmup_ratio": 0.2, "decay_ratio": 0.3, "final_learning_rate_ratio": 0.1}
    recipe = make_job(tokens=102_400, cpt=options | {"learning_rate": 1.0}).recipe
    rates = [learning_rate(step, recipe) for step in range(recipe.num_steps)]
    assert recipe.num_steps == 100
    assert rates[:20] == sorted(set(rates[:20]))
    assert max(rates) == rates[20] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0.1 < rates[-1] < 0.14
    if schedule == "wsd":
        assert stable_end(recipe) == 70
        assert set(rates[20:71]) == {1.0}
        assert rates[85] == pytest.approx(0.55)
    else:
        assert rates[60] == pytest.approx(0.55)


def test_a_longer_wsd_run_begins_as_the_shorter_one(make_job: MakeJob) -> None:
    options = {"schedule": "wsd", "warmup_steps": 10}
    short, long = (make_job(tokens=tokens, cpt=options) for tokens in (51_200, 102_400))
    assert short.fingerprint != long.fingerprint
    assert short.run.stable_fingerprint == long.run.stable_fingerprint
    end = stable_end(short.recipe)
    assert [learning_rate(s, short.recipe) for s in range(end)] == [learning_rate(s, long.recipe) for s in range(end)]


@pytest.mark.usefixtures("process_group")
def test_more_tokens_go_on_where_the_decay_began(make_job: MakeJob) -> None:
    """A run of 8 steps keeps its checkpoint of step 5; one of 16 steps that begins there equals one from the start."""
    options = {"cpt": {"schedule": "wsd", "warmup_steps": 1, "decay_ratio": 0.4, "learning_rate": 3e-4}}
    rare = options | {"checkpoint_tokens": 1_000_000, "keep_stable_checkpoint": True}
    short, long = Recorder(), Recorder()
    train(make_job(**rare), device=CPU, resume_from=None, host=short)
    kept, at_the_end = short.checkpoints
    assert [verify_checkpoint(one.directory).step for one in (kept, at_the_end)] == [5, 8]
    assert short.points[-1].step == 8
    train(make_job(**options, tokens=16_384), device=CPU, resume_from=None, host=long)
    extended = Recorder()
    train(make_job(**options, tokens=16_384), device=CPU, resume_from=kept.directory, host=extended)
    assert [point.step for point in extended.points] == list(range(6, 17))
    assert [p.loss for p in extended.points] == pytest.approx([p.loss for p in long.points[5:]], rel=1e-5)
    with pytest.raises(CheckpointMismatchError, match=r"recipe\.num_steps was 8, is 6"):
        train(make_job(**options, tokens=6144), device=CPU, resume_from=kept.directory, host=Recorder())


def test_skipped_steps_are_counted_and_too_many_end_the_run() -> None:
    guard = Guard(max_in_a_row=3)
    for step, skipped in enumerate([False, True, True, False, True]):
        guard.see(step, math.nan if skipped else 2.0, skipped=skipped)
    assert guard.skipped == [1, 2, 4]
    guard.see(5, math.nan, skipped=True)
    with pytest.raises(NonFiniteLossError, match="3 in a row"):
        guard.see(6, math.nan, skipped=True)


def test_a_loss_that_jumps_is_a_spike_and_noise_is_not() -> None:
    guard = Guard(max_in_a_row=3)
    for step in range(40):
        guard.see(step, 3.0 - 0.01 * step + 0.1 * (-1) ** step, skipped=False)
    assert guard.spikes == []
    guard.see(40, 5.0, skipped=False)
    guard.see(41, 2.6, skipped=False)
    assert guard.spikes == [40]


@pytest.mark.usefixtures("process_group")
def test_a_bad_batch_is_skipped_and_leaves_no_trace(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A NaN in one batch's loss: its step is left out, weights and optimiser stay, the others count."""
    from shortened_llm.retraining import loop

    real, seen = loop.train_step, []

    def poisoned(model, optimizer, batches, recipe, **options):  # type: ignore[no-untyped-def]
        loss = model.training_loss
        if len(seen) == 2:
            model.training_loss = lambda *tensors, **how: loss(*tensors, **how) * math.nan
        before = [p.full_tensor().clone() for p in model.parameters()] if len(seen) == 2 else []
        outcome = real(model, optimizer, batches, recipe, **options)
        if len(seen) == 2:
            model.training_loss = loss
            assert all(torch.equal(a, b.full_tensor()) for a, b in zip(before, model.parameters(), strict=True))
        seen.append(outcome)
        return outcome

    monkeypatch.setattr(loop, "train_step", poisoned)
    recorder = Recorder()
    _, progress = train(make_job(), device=CPU, resume_from=None, host=recorder)
    assert progress.skipped_steps == (2,)
    assert [point.step for point in progress.history] == [1, 2, 4, 5, 6, 7, 8]
    assert all(math.isfinite(point.loss) for point in progress.history)
    assert recorder.values[-1]["skipped_steps"] == 1


@pytest.mark.usefixtures("process_group")
def test_scratch_begins_with_random_weights(make_job: MakeJob) -> None:
    pruned, scratch = make_job("cpt"), make_job("scratch")
    (_, of_pruned), (_, of_scratch) = (
        train(job, device=CPU, resume_from=None, host=Recorder()) for job in (pruned, scratch)
    )
    uniform = math.log(260)
    assert of_scratch.first_validation_loss == pytest.approx(uniform, abs=0.3)
    assert of_pruned.first_validation_loss < uniform - 0.5
    assert of_scratch.history[-1].validation_loss < uniform - 0.3, "it learns"


def test_frozen_weights_lie_in_the_compute_type_but_for_those_that_are_exact() -> None:
    """Files hold routers of Ernie in float32, and an export must not round what was never trained."""
    model = empty_model(INDEXED["ernie4_5_moe"])
    freeze(model, "bfloat16")
    exact = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert exact == {name for name, _ in model.named_parameters() if ".gate." in name}


def test_a_model_without_attention_has_a_cost() -> None:
    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=4)
    short, long = (training_flops(empty_model(config), length) for length in (64, 128))
    assert short == long > 0
