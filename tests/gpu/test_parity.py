"""The same numbers on a GPU as on the CPU: every stage that computes, on a toy in float32."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shortened_llm.criteria.criterion import ANGLE, COSINE, KL, NLL
from shortened_llm.criteria.taylor import TaylorOptions
from shortened_llm.models.bypass import bypassing
from shortened_llm.models.head import next_token_labels, token_nll
from shortened_llm.models.load import load_model
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import size_of, view_config
from shortened_llm.records import ModelRef
from shortened_llm.retraining.export import export_sharded
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.train import train
from shortened_llm.scoring.greedy_ppl import measure_greedy_ppl
from shortened_llm.scoring.magnitude import measure_magnitude
from shortened_llm.scoring.one_pass import walk_statistics
from shortened_llm.scoring.taylor import measure_taylor
from shortened_llm.storage.store import Store
from tests.conftest import keeping
from tests.gpu.models import DISTINCT, random_job, random_tokens, write_model
from tests.retraining.conftest import Recorder

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
PARITY = 1e-4
KEPT = (0, 1, 3, 4, 6, 7)


MakeJob = Callable[..., RetrainingJob]


@pytest.fixture
def make_job(toy: ModelRef, tmp_path: Path) -> MakeJob:
    """Six steps of a method on the toy without two of its blocks, 8 x 64 tokens each."""

    def make(method: str = "cpt", dtype: str = "float32", **options: object) -> RetrainingJob:
        job = random_job(
            tmp_path, toy.view(keeping(KEPT)), method, steps=6, dtype=dtype, sequences=8, length=64,
            checkpoint_steps=3, **{"compile": False, **options},
        )  # fmt: skip
        return dataclasses.replace(job, teacher=toy if job.recipe.distill else None)

    return make


@pytest.mark.parametrize("statistic", [NLL, KL, COSINE, ANGLE])
def test_walk(toy: ModelRef, device: torch.device, statistic: str) -> None:
    tokens = random_tokens(12, 48)
    on_cpu, on_gpu = (
        walk_statistics(
            StreamedModel.open(toy, "float32", device=place), tokens, [statistic], memory_gib=None,
        )[statistic]
        for place in (CPU, device)
    )  # fmt: skip
    # An angle near 0 is the arc cosine of a number near 1, which doubles the places that rounding reaches.
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=PARITY, atol=1e-3 if statistic == ANGLE else 1e-6)


def test_taylor_and_magnitude(toy: ModelRef, device: torch.device) -> None:
    tokens = random_tokens(12, 48)
    for measure in (
        lambda streamed: measure_taylor(streamed, tokens, TaylorOptions(), memory_gib=None),
        lambda streamed: measure_magnitude(streamed, TaylorOptions()),
    ):
        on_cpu, on_gpu = (measure(StreamedModel.open(toy, "float32", device=place)) for place in (CPU, device))
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=PARITY)


def test_greedy_choice(toy: ModelRef, device: torch.device) -> None:
    tokens = random_tokens(4, 48)
    on_cpu, on_gpu = (
        measure_greedy_ppl(
            StreamedModel.open(toy, "float32", device=place), tokens, (0, 7), 3, memory_gib=None,
        )
        for place in (CPU, device)
    )  # fmt: skip
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=PARITY)


def test_bfloat16_ranks_blocks_as_float32(toy: ModelRef, device: torch.device) -> None:
    """But for blocks whose losses lie nearer than what rounding moves."""
    tokens = random_tokens(12, 48)
    exact, rounded = (
        walk_statistics(StreamedModel.open(toy, dtype, device=place), tokens, [NLL], memory_gib=None)[NLL].mean(axis=0)[
            1:
        ]
        for dtype, place in (("float32", CPU), ("bfloat16", device))
    )
    moved = np.abs(rounded - exact).max()
    assert moved < 0.02 * exact.min()
    swapped = [
        abs(exact[one] - exact[two])
        for one in range(len(exact))
        for two in range(one)
        if (exact[one] - exact[two]) * (rounded[one] - rounded[two]) < 0
    ]
    assert max(swapped, default=0.0) <= 2 * moved


def test_losses(toy: ModelRef, device: torch.device) -> None:
    """Of each token, by the loss that evaluates and trains."""
    tokens = random_tokens(6, 48)
    on_cpu, on_gpu = (
        token_nll(load_model(toy, "float32", device=place), tokens.to(place), next_token_labels(tokens).to(place))
        for place in (CPU, device)
    )
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=PARITY, atol=PARITY)


def test_a_view_equals_the_bypassed_model(toy: ModelRef, device: torch.device) -> None:
    tokens = random_tokens(2, 48).to(device)
    removed = [block for block in range(toy.num_blocks) if block not in KEPT]
    dense, view = (load_model(ref, "bfloat16", device=device) for ref in (toy, toy.view(keeping(KEPT))))
    with torch.inference_mode(), bypassing(dense, removed, tokens):
        assert torch.equal(view(input_ids=tokens).logits, dense(input_ids=tokens).logits)


METHODS = {
    "cpt": {},
    "cpt, documents apart": {"isolate_documents": True},
    "lora": {"lora": {"dropout": 0.0}},
    "distill": {},
    "last_blocks": {},
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", METHODS)
def test_training(make_job: MakeJob, device: torch.device, name: str) -> None:
    """Losses, gradient norms and what the weights became, after six steps."""
    job = make_job(name.split(",")[0], **METHODS[name])
    on_cpu, on_gpu = Recorder(), Recorder()
    expected, _ = train(job, device=CPU, resume_from=None, host=on_cpu)
    model, _ = train(job, device=device, resume_from=None, host=on_gpu)
    for read in (lambda point: point.loss, lambda point: point.gradient_norm):
        assert [read(p) for p in on_gpu.points] == pytest.approx([read(p) for p in on_cpu.points], rel=PARITY)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        # AdamW divides by the gradient's size: where that is all rounding, a step is any step of the learning rate.
        torch.testing.assert_close(ours.full_tensor().cpu(), theirs.full_tensor(), rtol=0, atol=2e-4)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "options", [{"compile": True}, {"activation_checkpointing": True}, {"cpu_offload": True}, {"micro_batch_size": 2}]
)
def test_what_saves_time_or_memory_changes_nothing(
    make_job: MakeJob, device: torch.device, options: dict[str, object]
) -> None:
    plain, changed = Recorder(), Recorder()
    train(make_job(), device=device, resume_from=None, host=plain)
    train(make_job(**options), device=device, resume_from=None, host=changed)
    assert [p.loss for p in changed.points] == pytest.approx([p.loss for p in plain.points], rel=PARITY)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", ["cpt", "lora", "distill"])
def test_stop_and_resume_equals_straight_through(make_job: MakeJob, device: torch.device, method: str) -> None:
    """With dropout, whose random numbers are the device's own."""
    job = make_job(method, lora={"dropout": 0.2})
    straight, resumed = Recorder(), Recorder()
    model, _ = train(job, device=device, resume_from=None, host=straight)
    again, progress = train(job, device=device, resume_from=straight.checkpoints[0].directory, host=resumed)
    assert [point.step for point in resumed.points] == [4, 5, 6]
    assert [p.loss for p in resumed.points] == pytest.approx([p.loss for p in straight.points[3:]], rel=1e-5)
    assert progress.tokens == job.recipe.tokens
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        # The embedding's gradient is summed in no fixed order.
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor(), rtol=0, atol=2e-5)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("method", "offloaded"), [("cpt", False), ("lora", False), ("cpt", True)])
def test_the_exported_model_is_the_trained_one(
    make_job: MakeJob, local_store: Store, device: torch.device, tmp_path: Path, method: str, offloaded: bool
) -> None:
    # Under the other tests' weights of twice the size, what bfloat16 rounds alone moves logits by 5 %.
    calm = write_model(tmp_path / "calm", "toy", dtype=torch.float32, device=CPU, deviation=DISTINCT / 2)
    job = make_job(method, dtype="bfloat16", lora={"learning_rate": 3e-3}, cpu_offload=offloaded)
    job = dataclasses.replace(job, model=calm.view(keeping(KEPT)))
    model, _ = train(job, device=device, resume_from=None, host=Recorder())
    tokens = random_tokens(2, 48)
    with torch.inference_mode():
        trained = model.eval()(input_ids=tokens.to(device), use_cache=False).logits.float().cpu()
    exported = export_sharded(model, job, local_store, rank=0)
    assert exported is not None
    loaded = load_model(exported.model, "bfloat16", device=device)
    with torch.inference_mode():
        logits = loaded(input_ids=tokens.to(device)).logits.float().cpu()
    assert (logits - trained).norm() / trained.norm() < 0.1  # a wrong tensor is off by about 1
    assert loaded.config.num_hidden_layers == len(KEPT)
    if method == "cpt":
        for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(ours.cpu(), theirs.full_tensor().cpu().bfloat16()), name
    written = sum(parameter.numel() for parameter in loaded.parameters())
    assert written == size_of(view_config(exported.model), "bfloat16").without(()).parameters
