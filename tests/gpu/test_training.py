"""Speed and memory of training: bare steps, transformers' `Trainer` on the same, and the whole loop."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from shortened_llm import metrics
from shortened_llm.config import ResourcesConfig
from shortened_llm.data.batches import MicroBatch
from shortened_llm.models.directory import load_config
from shortened_llm.models.head import next_token_labels
from shortened_llm.records import ModelRef, TrainingPoint
from shortened_llm.retraining.checkpoint import PendingCheckpoint
from shortened_llm.retraining.flops import peak_flops, training_flops
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.prepare import prepare_method
from shortened_llm.retraining.sharding import make_mesh, open_sharded
from shortened_llm.retraining.step import make_optimizer, train_step
from shortened_llm.retraining.train import train
from shortened_llm.retraining.zeros import HeldZeros
from shortened_llm.search.estimate import Shapes
from shortened_llm.search.memory import worker_memory
from tests.conftest import keeping
from tests.gpu.conftest import Figures
from tests.gpu.models import random_job, random_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("process_group")]
LENGTH, SEQUENCES = 2048, 16
"""Tokens of a sequence, and sequences of a step."""
WARM_UP, TIMED = 2, 5
"""Steps: the first ones compile and fill the allocator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one way to train."""

    tokens_per_second: float
    peak_gib: float

    def named(self, flops_per_token: float, device: torch.device) -> dict[str, float | None]:
        peak = peak_flops(device, "bfloat16")
        return {
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.tokens_per_second * flops_per_token / peak if peak else None,
            "peak_gib": self.peak_gib,
        }


VARIANTS = {
    "compiled, micro-batch 8": {"micro_batch_size": 8, "compile": True},
    "compiled": {"micro_batch_size": 4, "compile": True},
    "plain": {"micro_batch_size": 4, "compile": False},
    "compiled and checkpointed": {"micro_batch_size": 8, "compile": True, "activation_checkpointing": True},
    "checkpointed": {"micro_batch_size": 8, "compile": False, "activation_checkpointing": True},
}


@pytest.fixture
def length(rehearsed: bool) -> int:
    return 32 if rehearsed else LENGTH


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_of_1b(
    name: str,
    model_of: Callable[[str], ModelRef],
    device: torch.device,
    figures: Figures,
    length: int,
    dtype: str,
    tmp_path: Path,
) -> None:
    """Continued pretraining of all weights: compute in bfloat16, weights and AdamW in float32."""
    job = random_job(
        tmp_path, model_of("1b"), steps=10, dtype=dtype, sequences=SEQUENCES, length=length, **VARIANTS[name]
    )
    model = open_sharded(
        job.model, make_mesh(device, 1, None), job.dtype, job.placement, device=device, sequence_length=length,
        prepare=lambda model: prepare_method(model, job.recipe, job.dtype),
    )  # fmt: skip
    optimizer = make_optimizer(model, job.recipe)
    held = torch.cuda.memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    flops = training_flops(model, length)
    batches = [
        MicroBatch(input_ids=part, labels=next_token_labels(part), position_ids=None, first_position=0)
        for part in random_tokens(SEQUENCES, length).to(device).split(job.placement.micro_batch_size)
    ]
    losses = []

    def step() -> None:
        outcome = train_step(
            model, optimizer, batches, job.recipe, place=lambda batch: batch,
            num_predictions=SEQUENCES * (length - 1), world_size=1, teacher=None, gathers_once=True,
            zeros=HeldZeros(()),
        )  # fmt: skip
        losses.append(outcome.loss)

    speed = _speed_of(step, SEQUENCES * length, device)
    assert losses[-1] < losses[0]
    estimated = _estimated_gib(job, device)
    figures.add(
        f"training 1b, {name}",
        **speed.named(flops, device),
        weights_gib=held,
        estimated_gib=estimated,
        **{key: str(value) for key, value in VARIANTS[name].items()},
    )
    assert device.type == "cpu" or estimated == pytest.approx(speed.peak_gib, rel=0.15)


def _estimated_gib(job: RetrainingJob, device: torch.device) -> float:
    """What `--dry-run` would say of a worker."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    student = Shapes(load_config(Path(job.model.url)), job.dtype).student((), job.recipe)
    needs = worker_memory(
        student, None, job.recipe, job.placement, ResourcesConfig(gpus_per_worker=1), dtype=job.dtype, memory=total
    )
    return needs.peak / 2**30


def test_trainer_on_1b(
    model_of: Callable[[str], ModelRef], device: torch.device, figures: Figures, length: int, dtype: str, tmp_path: Path
) -> None:
    """transformers' `Trainer` at the same: micro-batches of 4, bfloat16 by autocast, fused AdamW."""
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            _wait(device)
            ends.append(time.perf_counter())

    model = LlamaForCausalLM.from_pretrained(model_of("1b").url, dtype=torch.float32).to(device).train()
    model.config.use_cache = False
    rows = [{"input_ids": row, "labels": row} for row in random_tokens((WARM_UP + TIMED) * SEQUENCES, length)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=device.type == "cpu", bf16=dtype == "bfloat16", max_steps=WARM_UP + TIMED,
        per_device_train_batch_size=4, gradient_accumulation_steps=SEQUENCES // 4, learning_rate=1e-4,
        weight_decay=0.1, optim="adamw_torch_fused", logging_strategy="no", save_strategy="no", report_to=[],
        disable_tqdm=True,
    )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    each = [after - before for before, after in itertools.pairwise(ends[WARM_UP - 1 :])]
    speed = Speed(tokens_per_second=SEQUENCES * length / statistics.median(each), peak_gib=_peak_gib(device))
    figures.add("training 1b, Trainer", **speed.named(training_flops(model, length), device))


@pytest.mark.parametrize("micro_batch", [2])
def test_adapters_of_8b(
    micro_batch: int,
    model_of: Callable[[str], ModelRef],
    device: torch.device,
    figures: Figures,
    length: int,
    dtype: str,
    tmp_path: Path,
) -> None:
    """The whole loop of a LoRA run; its checkpoints hold the adapters alone."""
    steps = 6
    job = random_job(
        tmp_path, model_of("8b"), "lora", steps=steps, dtype=dtype, sequences=8, length=length,
        micro_batch_size=micro_batch, lora={"dropout": 0.0},
    )  # fmt: skip
    host = _Host()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train(job, device=device, resume_from=None, host=host)
    figures.add(
        "training 8b, lora",
        tokens_per_second=statistics.median(values[metrics.TOKENS_PER_SECOND] for values in host.values[2:]),
        mfu=host.values[-1].get(metrics.MFU),
        peak_gib=_peak_gib(device),
    )


def test_the_loop_and_its_checkpoints(
    model_of: Callable[[str], ModelRef], device: torch.device, figures: Figures, length: int, dtype: str, tmp_path: Path
) -> None:
    """Two checkpoints of a quarter of the 1b model, whose writing the steps between them hide."""
    model = model_of("1b")
    job = random_job(
        tmp_path, model.view(keeping(range(model.num_blocks // 4))), steps=24, dtype=dtype, sequences=SEQUENCES,
        length=length, checkpoint_steps=12, micro_batch_size=8,
    )  # fmt: skip
    host = _Host()
    train(job, device=device, resume_from=None, host=host)
    pending = [checkpoint for checkpoint in host.checkpoints if checkpoint is not None]
    assert len(pending) == 2
    written = sum(file.stat().st_size for file in pending[-1].wait().iterdir())
    stalls = [
        values[metrics.CHECKPOINT_STALL]
        for values, checkpoint in zip(host.values, host.checkpoints, strict=True)
        if checkpoint is not None
    ]
    speeds = [values[metrics.TOKENS_PER_SECOND] for values in host.values]
    figures.add(
        "checkpoints of a quarter of 1b",
        checkpoint_gib=written / 2**30,
        first_stall_seconds=stalls[0],
        second_stall_seconds=stalls[1],
        tokens_per_second_before=statistics.median(speeds[4:11]),
        tokens_per_second_while_writing=statistics.median(speeds[13:18]),
        seconds_waiting_for_data=max(values[metrics.DATA_WAIT] for values in host.values[2:]),
    )


class _Host:
    def __init__(self) -> None:
        self.values: list[Mapping[str, float]] = []
        self.checkpoints: list[PendingCheckpoint | None] = []

    def report(self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None) -> None:
        self.values.append(values)
        self.checkpoints.append(checkpoint)

    def preempted(self) -> bool:
        return False


def _speed_of(step: Callable[[], None], tokens: int, device: torch.device) -> Speed:
    """The median over some steps, after others that are not counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return Speed(tokens_per_second=tokens / statistics.median(seconds[WARM_UP:]), peak_gib=_peak_gib(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
