"""Training without Ray: what a step computes, and that stopping changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shortened_llm.config import CptConfig, SearchConfig
from shortened_llm.data.order import sequence_at
from shortened_llm.data.packing import TokenSequences, pack_tokens
from shortened_llm.data.sources import text_roles
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.models.load import load_model, load_tokenizer, model_directory
from shortened_llm.records import ModelRef, TrainingPoint
from shortened_llm.retraining.checkpoint import CheckpointMismatchError
from shortened_llm.retraining.export import export_sharded
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.loop import train
from shortened_llm.retraining.schedule import learning_rate_factor
from shortened_llm.storage.store import Store

CPU = torch.device("cpu")


@pytest.fixture
def job(tiny_config: SearchConfig, tiny_model: ModelRef, local_store: Store) -> RetrainingJob:
    tokenizer = load_tokenizer(model_directory(tiny_model))
    tokens = pack_tokens(
        text_roles(tiny_config).train, tokenizer, "tiny", 128, 64, local_store, on_progress=lambda line: None
    )
    return RetrainingJob(
        model=tiny_model.view((0, 1, 4, 6, 7)),
        tokens=tokens,
        config=tiny_config.retraining,
        method="cpt",
        learning_rate=3e-4,
        dtype="float32",
    )


class Recorder:
    """Keeps what the loop reports."""

    def __init__(self) -> None:
        self.points: list[TrainingPoint] = []
        self.norms: list[float] = []
        self.checkpoints: list[Path] = []

    def __call__(self, point: TrainingPoint, norm: float, checkpoint: Path | None) -> None:
        self.points.append(point)
        self.norms.append(norm)
        if checkpoint is not None:
            self.checkpoints.append(checkpoint)


@pytest.mark.usefixtures("process_group")
def test_stop_and_resume_equals_straight_through(job: RetrainingJob) -> None:
    straight = Recorder()
    model, progress = train(job, device=CPU, resume_from=None, report=straight)
    resumed = Recorder()
    again, resumed_progress = train(job, device=CPU, resume_from=straight.checkpoints[0], report=resumed)
    assert 0 < len(resumed.points) < len(straight.points)
    assert resumed.points[-1].loss == pytest.approx(straight.points[-1].loss, abs=1e-6)
    assert [p.step for p in resumed_progress.history] == [p.step for p in progress.history]
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor(), rtol=0, atol=1e-7)


@pytest.mark.usefixtures("process_group")
def test_the_loop_is_plain_adamw_on_the_mean_loss(job: RetrainingJob) -> None:
    """Eight steps against a loop written from torch alone: same data, same losses, same weights."""
    recorder = Recorder()
    model, _ = train(job, device=CPU, resume_from=None, report=recorder)
    config, sequences = job.config, TokenSequences(job.tokens)
    plain = load_model(job.model, "float32").train()
    decayed = [p for p in plain.parameters() if p.dim() >= 2]
    others = [p for p in plain.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.cpt.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=config.cpt.betas,
    )
    for step in range(config.num_steps):
        positions = range(step * config.global_batch_size, (step + 1) * config.global_batch_size)
        rows = [sequences[sequence_at(p, seed=0, num_sequences=job.tokens.num_sequences)] for p in positions]
        batch = torch.tensor([row.tolist() for row in rows])
        loss = F.cross_entropy(plain(input_ids=batch).logits[:, :-1].transpose(1, 2), batch[:, 1:])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), config.cpt.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate * learning_rate_factor(step, config.num_steps, config.cpt)
        optimizer.step()
        optimizer.zero_grad()
        assert recorder.points[step].loss == pytest.approx(loss.item(), rel=1e-5)
        assert recorder.norms[step] == pytest.approx(norm.item(), rel=1e-4)  # AdamW and clipping hide a wrong scale
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("process_group")
def test_micro_batches_and_activation_checkpointing_change_nothing(job: RetrainingJob) -> None:
    whole, parts = Recorder(), Recorder()
    train(job, device=CPU, resume_from=None, report=whole)
    other = job.config.model_copy(update={"micro_batch_size": 1, "activation_checkpointing": True})
    train(replace(job, config=other), device=CPU, resume_from=None, report=parts)
    assert replace(job, config=other).fingerprint == job.fingerprint
    assert [p.loss for p in parts.points] == pytest.approx([p.loss for p in whole.points], rel=1e-5)


@pytest.mark.usefixtures("process_group")
def test_the_exported_model_is_the_trained_one(job: RetrainingJob, local_store: Store) -> None:
    model, _ = train(replace(job, dtype="bfloat16"), device=CPU, resume_from=None, report=Recorder())
    ref = export_sharded(model, replace(job, dtype="bfloat16"), local_store, rank=0)
    assert ref is not None
    loaded = load_model(ref, "bfloat16")
    assert len(ref.kept_blocks) == 5
    for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.full_tensor().bfloat16()), name


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_of_another_run_is_refused(job: RetrainingJob) -> None:
    recorder = Recorder()
    train(job, device=CPU, resume_from=None, report=recorder)
    with pytest.raises(CheckpointMismatchError, match=job.fingerprint):
        train(replace(job, learning_rate=1e-4), device=CPU, resume_from=recorder.checkpoints[0], report=Recorder())


@pytest.mark.usefixtures("process_group")
def test_a_loss_that_is_no_number_ends_the_run(job: RetrainingJob) -> None:
    with pytest.raises(NonFiniteLossError, match="loss is"):
        train(replace(job, learning_rate=1e30), device=CPU, resume_from=None, report=Recorder())


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = CptConfig(warmup_ratio=0.2, final_learning_rate_ratio=0.1)
    factors = [learning_rate_factor(step, 100, config) for step in range(100)]
    assert factors.index(max(factors)) == 20
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert max(factors) == 1.0
    assert 0.1 <= factors[-1] < 0.102


def test_where_it_runs_is_no_part_of_a_runs_identity(job: RetrainingJob) -> None:
    for update in ({"micro_batch_size": 1}, {"checkpoint_tokens": 1024}, {"activation_checkpointing": True}):
        assert replace(job, config=job.config.model_copy(update=update)).fingerprint == job.fingerprint
    for update in ({"tokens": 16384}, {"seed": 1}, {"global_batch_size": 4}):
        assert replace(job, config=job.config.model_copy(update=update)).fingerprint != job.fingerprint
    assert replace(job, learning_rate=1e-4).fingerprint != job.fingerprint
    assert replace(job, model=job.model.view((0, 7))).fingerprint != job.fingerprint
