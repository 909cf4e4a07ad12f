"""Criteria against independent computations of their formulas, and against planted structure."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.config import MagnitudeConfig, TaylorConfig
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.scoring.magnitude import score_magnitude
from shortened_llm.scoring.ppl import score_ppl
from shortened_llm.scoring.taylor import score_taylor
from tests.conftest import SaveModel
from tests.models.families import FAMILIES
from tests.models.test_view import bypassed_logits


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 97, (5, 16), generator=torch.Generator().manual_seed(2))


def perplexity(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return math.exp(losses.double().mean().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_ppl_is_the_perplexity_without_each_block(family: str, save_random_model: SaveModel, tokens) -> None:
    model, _ = save_random_model(FAMILIES[family])
    scores = score_ppl(model, tokens, batch_size=2, on_progress=silent)
    blocks = range(len(find_blocks(model)))
    with torch.inference_mode():
        dense = perplexity(model(input_ids=tokens, use_cache=False).logits, tokens)
    assert scores.dense_perplexity == pytest.approx(dense, rel=1e-5)
    originals = list(find_blocks(model))
    for block in blocks:
        expected = perplexity(bypassed_logits(model, tuple(b for b in blocks if b != block), tokens), tokens)
        find_blocks(model)[block] = originals[block]
        assert scores.scores[block] == pytest.approx(expected, rel=1e-5)


def independent_importance(
    model: PreTrainedModel, importance: Callable[[torch.Tensor], torch.Tensor], power: int, outputs: str, block: str
) -> list[float]:
    reduce = {"sum": sum, "mean": lambda values: sum(values) / len(values), "max": max}
    result = []
    for index in range(len(find_blocks(model))):
        per_weight = []
        for name, weight in find_blocks(model)[index].named_parameters():
            if name.endswith(".bias"):
                continue
            rows = importance(weight).double().reshape(-1, weight.shape[-1]) if weight.dim() > 1 else None
            values = (rows**power).sum(dim=1) if rows is not None else importance(weight).double() ** power
            per_weight.append(reduce[outputs](values.tolist()))
        result.append(reduce[block](per_weight))
    return result


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize(("power", "outputs", "block"), [(1, "sum", "sum"), (2, "mean", "max"), (1, "max", "mean")])
def test_taylor_and_magnitude_are_their_formulas(
    family: str, power: int, outputs: str, block: str, save_random_model: SaveModel, tokens
) -> None:
    model, _ = save_random_model(FAMILIES[family])
    loss = F.cross_entropy(model(input_ids=tokens).logits[:, :-1].transpose(1, 2), tokens[:, 1:])
    loss.backward()
    gradients = {id(p): torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()}
    model.zero_grad()
    names = {"power": power, "output_reduction": outputs, "block_reduction": block}

    taylor = score_taylor(model, tokens, TaylorConfig(**names), batch_size=2, on_progress=silent)
    expected = independent_importance(model, lambda w: (w * gradients[id(w)]).abs().detach(), power, outputs, block)
    assert taylor.scores == pytest.approx(expected, rel=1e-4)

    magnitude = score_magnitude(model, MagnitudeConfig(**names), on_progress=silent)
    expected = independent_importance(model, lambda w: w.abs().detach(), power, outputs, block)
    assert magnitude.scores == pytest.approx(expected, rel=1e-6)


def test_a_planted_identity_block_changes_nothing_and_goes_first(save_random_model: SaveModel, tokens) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for block in find_blocks(model):
            for weight in block.parameters():
                weight.mul_(8 if weight.dim() > 1 else 1)  # blocks of a random model hardly matter
        planted = find_blocks(model)[3]
        planted.self_attn.o_proj.weight.zero_()
        planted.mlp.down_proj.weight.zero_()
    scores = score_ppl(model, tokens, batch_size=5, on_progress=silent)
    assert scores.scores[3] == pytest.approx(scores.dense_perplexity, rel=1e-6)
    assert scores.standard_errors is not None
    assert scores.standard_errors[3] == pytest.approx(0, abs=1e-4)


def test_duplicated_or_permuted_calibration_changes_nothing(save_random_model: SaveModel, tokens) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    scores = score_ppl(model, tokens, batch_size=2, on_progress=silent)
    for other in (tokens.repeat(2, 1), tokens.flip(0)):
        assert score_ppl(model, other, batch_size=3, on_progress=silent).scores == pytest.approx(
            scores.scores, rel=1e-6
        )


def test_equal_scores_keep_the_order_of_the_blocks(save_random_model: SaveModel) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for weight in nn.ParameterList(p for b in find_blocks(model) for p in b.parameters()):
            weight.fill_(1.0)
    assert score_magnitude(model, MagnitudeConfig(), on_progress=silent).order == tuple(range(6))


def test_a_nan_is_named_by_block_and_sequence(save_random_model: SaveModel, tokens) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        model.get_input_embeddings().weight[int(tokens[2, 0])] = float("nan")
    first = int((tokens == tokens[2, 0]).any(dim=1).nonzero()[0])
    with pytest.raises(NonFiniteLossError, match=rf"block 0 .* sequence {first}"):
        score_ppl(model, tokens, batch_size=5, on_progress=silent)


def test_taylor_leaves_no_gradients_behind(save_random_model: SaveModel, tokens) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    score_taylor(model, tokens, TaylorConfig(), batch_size=5, on_progress=silent)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
