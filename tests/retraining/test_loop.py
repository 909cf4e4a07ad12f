"""Training without Ray: what a step computes, and that stopping changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shortened_llm import metrics
from shortened_llm.data.batches import TokenSequences, TrainingStream
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.load import load_model
from shortened_llm.records import RetrainedModel, from_json, to_json
from shortened_llm.retraining.checkpoint import CheckpointMismatchError
from shortened_llm.retraining.export import export_sharded
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.schedule import learning_rate
from shortened_llm.retraining.train import train
from shortened_llm.storage.store import Store
from tests.conftest import MakeJob, keeping
from tests.retraining.conftest import Recorder, with_rate

CPU = torch.device("cpu")


def run(job: RetrainingJob, recorder: Recorder, resume_from: Path | None = None):  # type: ignore[no-untyped-def]
    return train(job, device=CPU, resume_from=resume_from, host=recorder)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", ["cpt", "lora", "distill", "last_blocks", "scratch"])
def test_stop_and_resume_equals_straight_through(make_job: MakeJob, method: str) -> None:
    """With dropout, so that its random numbers are part of the comparison."""
    job = make_job(method, lora={"learning_rate": 3e-3, "dropout": 0.2})
    straight, resumed = Recorder(), Recorder()
    model, progress = run(job, straight)
    again, resumed_progress = run(job, resumed, straight.checkpoints[0].directory)
    assert 0 < len(resumed.points) < len(straight.points)
    assert resumed.points[-1].loss == pytest.approx(straight.points[-1].loss, abs=1e-6)
    assert [p.step for p in resumed_progress.history] == [p.step for p in progress.history]
    assert (resumed_progress.tokens, resumed_progress.best_validation_loss) == (
        progress.tokens,
        pytest.approx(progress.best_validation_loss, abs=1e-6),
    )
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor(), rtol=0, atol=1e-7)


@pytest.mark.usefixtures("process_group")
def test_the_loop_is_plain_adamw_on_the_mean_loss(job: RetrainingJob) -> None:
    """Eight steps against a loop written from torch alone: same data, same losses, same weights."""
    recorder = Recorder()
    model, _ = run(job, recorder)
    recipe, sequences = job.recipe, TokenSequences(job.tokens.parts[0])
    stream = TrainingStream(job.tokens, recipe, micro_batch_size=8, rank=0, world_size=1)
    plain = load_model(job.model, "float32").train()
    decayed = [p for p in plain.parameters() if p.dim() >= 2]
    others = [p for p in plain.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=recipe.betas,
    )
    for step in range(recipe.num_steps):
        batch = torch.tensor([sequences[index].tolist() for _, index in stream.indices(step)])
        loss = F.cross_entropy(plain(input_ids=batch).logits[:, :-1].transpose(1, 2), batch[:, 1:])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), recipe.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
        optimizer.zero_grad()
        assert recorder.points[step].loss == pytest.approx(loss.item(), rel=1e-5)
        # AdamW and clipping hide a wrong scale
        assert recorder.points[step].gradient_norm == pytest.approx(norm.item(), rel=1e-4)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("share", "recomputed"), [(True, [0, 1, 2, 3, 4]), (0.4, [2, 4])])
def test_micro_batches_and_activation_checkpointing_change_nothing(
    make_job: MakeJob, share: bool | float, recomputed: list[int]
) -> None:
    job, whole, parts = make_job(), Recorder(), Recorder()
    run(job, whole)
    other = make_job(micro_batch_size=1, activation_checkpointing=share)
    model, _ = run(other, parts)
    assert [
        index for index, block in enumerate(find_blocks(model)) if "Checkpoint" in type(block).__name__
    ] == recomputed
    assert other.fingerprint == job.fingerprint
    assert [p.loss for p in parts.points] == pytest.approx([p.loss for p in whole.points], rel=1e-5)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", ["cpt", "last_blocks", "distill"])
def test_the_exported_model_is_the_trained_one(make_job: MakeJob, local_store: Store, method: str) -> None:
    job = make_job(method, dtype="bfloat16")
    model, _ = run(job, Recorder())
    exported = export_sharded(model, job, local_store, rank=0)
    assert exported is not None
    assert exported.adapter is None
    loaded = load_model(exported.model, "bfloat16")
    assert (exported.model.num_blocks, exported.model.origin) == (5, job.model.transforms)
    for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.full_tensor().bfloat16()), name
    untrained = load_model(job.model, "bfloat16")
    changed = {
        name for (name, ours), theirs in zip(loaded.named_parameters(), untrained.parameters(), strict=True)
        if not torch.equal(ours, theirs)
    }  # fmt: skip
    assert changed
    if method == "last_blocks":
        assert {name.split(".")[2] for name in changed if ".layers." in name} == {"2", "3", "4"}


@pytest.mark.usefixtures("process_group")
def test_the_losses_of_a_run_are_kept_as_a_record(job: RetrainingJob, local_store: Store) -> None:
    recorder = Recorder()
    model, progress = run(job, recorder)
    exported = export_sharded(model, job, local_store, rank=0)
    assert exported is not None
    record = RetrainedModel(
        model=exported.model, tokens=progress.tokens, seconds=progress.seconds,
        accelerator_seconds=progress.accelerator_seconds, history=progress.history,
    )  # fmt: skip
    assert from_json(RetrainedModel, to_json(record)) == record
    assert progress.tokens == 8192
    assert recorder.points[-1].validation_loss == progress.best_validation_loss
    for values in recorder.values:
        assert values[metrics.TOKENS_PER_SECOND] > 0
        assert values[metrics.FLOPS] > 0
        assert 0 <= values[metrics.DATA_WAIT] <= 1
    assert recorder.values[-1][metrics.SECONDS_LEFT] == 0


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_of_another_run_is_refused(job: RetrainingJob) -> None:
    recorder = Recorder()
    run(job, recorder)
    with pytest.raises(CheckpointMismatchError, match=r"recipe.learning_rate was 0.0003, is 0.0001"):
        run(with_rate(job, 1e-4), Recorder(), recorder.checkpoints[0].directory)


@pytest.mark.usefixtures("process_group")
def test_a_loss_that_is_no_number_ends_the_run(make_job: MakeJob) -> None:
    with pytest.raises(NonFiniteLossError, match="gradient that is not finite, as have 3 in a row"):
        run(with_rate(make_job(max_skipped_steps=3), 1e30), Recorder())


@pytest.mark.usefixtures("process_group")
def test_preemption_saves_at_once_and_only_once(make_job: MakeJob) -> None:
    recorder = Recorder(preempted_at=4)
    run(make_job(checkpoint_tokens=1_000_000), recorder)
    assert len(recorder.checkpoints) == 2  # and one at the end
    resumed = Recorder()
    run(make_job(), resumed, recorder.checkpoints[0].directory)
    assert [point.step for point in resumed.points] == [5, 6, 7, 8]


def test_where_it_runs_is_no_part_of_a_runs_identity(make_job: MakeJob) -> None:
    job = make_job()
    for same in ({"micro_batch_size": 1}, {"checkpoint_tokens": 1024}, {"activation_checkpointing": True}):
        assert make_job(**same).fingerprint == job.fingerprint
    for other in ({"tokens": 16384}, {"seed": 1}, {"global_batch_size": 4}, {"isolate_documents": True}):
        assert make_job(**other).fingerprint != job.fingerprint
    drops, keeps = ({"lora": {"learning_rate": 1e-3, "dropout": dropout}} for dropout in (0.1, 0.0))
    assert make_job("lora", **drops).fingerprint != make_job("lora", **drops, micro_batch_size=1).fingerprint
    assert make_job("lora", **keeps).fingerprint == make_job("lora", **keeps, micro_batch_size=1).fingerprint
    assert with_rate(job, 1e-4).fingerprint != job.fingerprint
    assert replace(job, model=job.model.view(keeping((0, 7)))).fingerprint != job.fingerprint
