"""What scoring costs: one walk against what one would do instead."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from shortened_llm.criteria.criterion import KL, NLL
from shortened_llm.criteria.taylor import TaylorOptions
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.load import load_model
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import view_config
from shortened_llm.records import ModelRef
from shortened_llm.scoring.one_pass import walk_statistics
from shortened_llm.scoring.taylor import measure_taylor
from tests.gpu.conftest import Figures, cost_of
from tests.gpu.models import random_tokens

pytestmark = pytest.mark.gpu
REBUILT, BYPASSED = 2, 4
"""So many blocks are timed where all of them take minutes; the seconds are scaled to all."""
SEQUENCES_AT_ONCE = 16
"""Of the bypass: their logits fit beside the model."""


@pytest.fixture
def silent() -> dict[str, Any]:
    return {"memory_gib": None}


@pytest.mark.parametrize("shape", ["8b", "1b"])
def test_a_short_calibration(
    shape: str,
    model_of: Callable[[str], ModelRef],
    device: torch.device,
    figures: Figures,
    silent: dict[str, Any],
    dtype: str,
) -> None:
    """10 x 128 tokens, as the paper has it: everything from the files, which the page cache holds."""
    model, tokens = model_of(shape), random_tokens(10, 128)
    blocks, found = model.num_blocks, {}

    def walk() -> None:
        streamed = StreamedModel.open(model, dtype, device=device)
        found["walk"] = walk_statistics(streamed, tokens, [NLL], **silent)[NLL].mean(axis=0)[1:]

    def every_statistic() -> None:
        walk_statistics(StreamedModel.open(model, dtype, device=device), tokens, [NLL, KL, "cosine"], **silent)

    def bypass() -> None:
        found["bypass"] = bypassed(model, dtype, tokens, device, range(blocks))

    def taylor() -> None:
        streamed = StreamedModel.open(model, dtype, device=device)
        found["taylor"] = measure_taylor(streamed, tokens, TaylorOptions(), **silent)

    cost_of(walk, device)  # fills the page cache and the kernels' caches
    costs = {work.__name__: cost_of(work, device) for work in (walk, every_statistic, bypass, taylor)}
    assert found["walk"] == pytest.approx(found["bypass"], rel=2e-3)
    assert (found["taylor"] > 0).all()
    figures.add(
        f"scoring {shape}, {blocks} blocks, 10 x 128",
        **{f"{name}_seconds": cost.seconds for name, cost in costs.items()},
        **{f"{name}_peak_gib": cost.peak_gib for name, cost in costs.items()},
        bypass_over_walk=costs["bypass"].seconds / costs["walk"].seconds,
    )


@pytest.mark.parametrize("shape", ["8b", "1b"])
def test_a_long_calibration(
    shape: str,
    model_of: Callable[[str], ModelRef],
    device: torch.device,
    figures: Figures,
    silent: dict[str, Any],
    dtype: str,
    rehearsed: bool,
) -> None:
    """128 x 512 tokens."""
    model, tokens = model_of(shape), random_tokens(*((16, 64) if rehearsed else (128, 512)))
    blocks = model.num_blocks
    walk = cost_of(
        lambda: walk_statistics(StreamedModel.open(model, dtype, device=device), tokens, [NLL], **silent), device
    )
    taylor = cost_of(
        lambda: measure_taylor(StreamedModel.open(model, dtype, device=device), tokens, TaylorOptions(), **silent),
        device,
    )
    loading = cost_of(lambda: load_model(model, dtype, device=device), device).seconds
    bypass = cost_of(lambda: bypassed(model, dtype, tokens, device, range(BYPASSED)), device)
    seconds = loading + (bypass.seconds - loading) * blocks / BYPASSED
    figures.add(
        f"scoring {shape}, {blocks} blocks, 128 x 512",
        walk_seconds=walk.seconds,
        walk_peak_gib=walk.peak_gib,
        taylor_seconds=taylor.seconds,
        taylor_peak_gib=taylor.peak_gib,
        bypass_seconds=seconds,
        bypass_note=f"scaled from {BYPASSED} blocks",
        bypass_over_walk=seconds / walk.seconds,
    )


@pytest.mark.parametrize("shape", ["1b", "8b"])
def test_rebuilding_for_each_block(
    shape: str,
    model_of: Callable[[str], ModelRef],
    device: torch.device,
    figures: Figures,
    silent: dict[str, Any],
    dtype: str,
) -> None:
    """The same scores by building the network anew without each block, on the CPU as transformers does."""
    model, tokens = model_of(shape), random_tokens(10, 128)
    found: list[Any] = []

    def walk() -> None:
        streamed = StreamedModel.open(model, dtype, device=device)
        found.append(walk_statistics(streamed, tokens, [NLL], **silent)[NLL].mean(axis=0)[1:])

    walk()
    seconds = cost_of(walk, device).seconds
    dense = load_model(model, dtype, device=device)
    rebuild = cost_of(lambda: found.append(rebuilt(model, dense, tokens, range(REBUILT))), device)
    assert found[-1] == pytest.approx(found[0][:REBUILT], rel=2e-3)
    scaled = rebuild.seconds * model.num_blocks / REBUILT
    figures.add(
        f"scoring {shape}, rebuilt for each block, 10 x 128",
        rebuild_seconds=scaled,
        rebuild_peak_gib=rebuild.peak_gib,
        rebuild_note=f"scaled from {REBUILT} blocks",
        rebuild_over_walk=scaled / seconds,
    )


@torch.inference_mode()
def bypassed(model: ModelRef, dtype: str, tokens: torch.Tensor, device: torch.device, blocks: range) -> list[float]:
    """Mean loss without each block, nats: one model in memory, each block in turn replaced by an identity."""
    dense = load_model(model, dtype, device=device)
    losses = []
    for removed in blocks:
        original = find_blocks(dense)[removed]
        find_blocks(dense)[removed] = _Identity()
        parts = [_summed_loss(dense, part.to(device)) for part in tokens.split(SEQUENCES_AT_ONCE)]
        losses.append(torch.stack(parts).sum().item() / (len(tokens) * (tokens.shape[1] - 1)))
        find_blocks(dense)[removed] = original
    return losses


@torch.inference_mode()
def rebuilt(model: ModelRef, dense: PreTrainedModel, tokens: torch.Tensor, blocks: range) -> list[float]:
    """Mean loss without each block, nats: a network of its own, and one sequence per forward pass."""
    losses = []
    for removed in blocks:
        config = view_config(model)
        config.num_hidden_layers -= 1
        shorter = LlamaForCausalLM._from_config(config, dtype=dense.dtype).to(dense.device).eval()
        kept = [block for index, block in enumerate(find_blocks(dense)) if index != removed]
        for target, source in zip(find_blocks(shorter), kept, strict=True):
            target.load_state_dict(source.state_dict())
        outside = {name: weight for name, weight in dense.state_dict().items() if ".layers." not in name}
        shorter.load_state_dict(outside, strict=False)
        summed = sum(_summed_loss(shorter, row[None].to(dense.device)).item() for row in tokens)
        losses.append(summed / (len(tokens) * (tokens.shape[1] - 1)))
    return losses


def _summed_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")


class _Identity(nn.Module):
    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden_states
