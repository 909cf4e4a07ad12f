"""Sub-layers are scored as blocks are: against a model whose sub-layers put out zeros."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.criteria.block_influence import block_influence_scores
from shortened_llm.criteria.criterion import COSINE, KL, NLL, mean_scores
from shortened_llm.criteria.greedy_ppl import greedy_ppl_scores
from shortened_llm.criteria.ppl import ppl_scores
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.stream import StreamedModel
from shortened_llm.records import SublayersTransform, parts_of
from shortened_llm.scoring.greedy_ppl import measure_greedy_ppl
from shortened_llm.scoring.one_pass import walk_statistics
from tests.conftest import SaveModel, reference_to
from tests.models.families import FAMILIES

UNITS = range(12)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 97, (4, 16), generator=torch.Generator().manual_seed(5))


def sublayer(model: PreTrainedModel, unit: int) -> nn.Module:
    block = find_blocks(model)[unit // 2]
    return getattr(block, "mlp" if unit % 2 else "attention" if hasattr(block, "attention") else "self_attn")


@contextmanager
def without(model: PreTrainedModel, units: Sequence[int]) -> Iterator[None]:
    def nothing(_: object, __: object, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        if isinstance(output, torch.Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])

    hooks = [sublayer(model, unit).register_forward_hook(nothing) for unit in units]
    yield
    for hook in hooks:
        hook.remove()


def log_probabilities(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1)


def perplexity(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    return math.exp(-log_probabilities(model, tokens).gather(2, tokens[:, 1:, None]).mean().item())


@pytest.mark.parametrize("family", ["llama_tied", "qwen3", "gemma2", "olmo2", "gpt_neox", "mixtral"])
def test_one_walk_is_skipping_each_sublayer(family: str, save_random_model: SaveModel, tokens) -> None:
    model, ref = save_random_model(FAMILIES[family])
    streamed = StreamedModel.open(ref, "float32")
    found = walk_statistics(streamed, tokens, [NLL, KL, COSINE], unit="sublayer", memory_gib=None)
    dense = log_probabilities(model, tokens)
    scores, divergences = ppl_scores(found[NLL]), mean_scores(found[KL])
    assert scores.dense_perplexity == pytest.approx(perplexity(model, tokens), rel=1e-5)
    for unit in UNITS:
        with without(model, [unit]):
            assert scores.scores[unit] == pytest.approx(perplexity(model, tokens), rel=1e-5)
            moved = (dense.exp() * (dense - log_probabilities(model, tokens))).sum(dim=-1).mean().item()
        assert divergences.scores[unit] == pytest.approx(moved, rel=1e-3, abs=2e-6)


def test_influence_is_that_of_each_addition(save_random_model: SaveModel, tokens) -> None:
    model, ref = save_random_model(FAMILIES["llama"])
    seen: list[torch.Tensor] = []
    hooks = []
    for block in find_blocks(model):
        hooks.append(block.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
        hooks.append(block.post_attention_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False)
    states = torch.stack(seen).double()
    expected = 1 - torch.cosine_similarity(states[:-1], states[1:], dim=-1).mean(dim=(1, 2))
    streamed = StreamedModel.open(ref, "float32")
    found = walk_statistics(streamed, tokens, [COSINE], unit="sublayer", memory_gib=None)
    assert block_influence_scores(found[COSINE]).scores == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("states_that_fit", [10_000, 5])
def test_greedy_removal_is_the_naive_search(
    states_that_fit: int, save_random_model: SaveModel, tokens, tmp_path
) -> None:
    """Six of the twelve go, so that a block loses both."""
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for block in find_blocks(model):
            for weight in block.parameters():
                weight.mul_(6 if weight.dim() > 1 else 1)  # sub-layers of a random model hardly matter
    model.save_pretrained(tmp_path / "model")
    streamed, protected = StreamedModel.open(reference_to(tmp_path / "model"), "float32"), (0, 1)
    removed: list[int] = []
    expected: list[float] = []
    for _ in range(8):
        scores = {}
        for unit in set(UNITS) - {*removed, *protected}:
            with without(model, [*removed, unit]):
                scores[unit] = perplexity(model, tokens)
        removed.append(min(scores, key=scores.__getitem__))
        expected.append(scores[removed[-1]])
    assert any({2 * block, 2 * block + 1} <= set(removed) for block in range(6))
    memory = states_that_fit * 16 * 32 * 4 / 2**30
    losses = measure_greedy_ppl(streamed, tokens, protected, 8, unit="sublayer", memory_gib=memory)
    found = greedy_ppl_scores(losses)
    assert list(found.order[:8]) == removed
    assert [found.scores[unit] for unit in removed] == pytest.approx(expected, rel=1e-5)


def test_a_dead_sublayer_goes_first(save_random_model: SaveModel, tokens, tmp_path) -> None:
    """One whose output projection is zero changes nothing."""
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        find_blocks(model)[2].mlp.down_proj.weight.zero_()
        find_blocks(model)[4].self_attn.o_proj.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    streamed = StreamedModel.open(reference_to(tmp_path / "model"), "float32")
    found = walk_statistics(streamed, tokens, [NLL, KL, COSINE], unit="sublayer", memory_gib=None)
    differences = np.abs(found[NLL][:, 1:] - found[NLL][:, :1]).max(axis=0)
    assert {unit for unit in UNITS if differences[unit] == 0} == {5, 8}
    for scores in (mean_scores(found[KL]), block_influence_scores(found[COSINE])):
        assert set(scores.order[:2]) == {5, 8}


def test_what_a_view_lost_is_lost_in_its_scores(save_random_model: SaveModel, tokens) -> None:
    """As where a model that was retrained is scored again."""
    _, ref = save_random_model(FAMILIES["llama"])
    gone = SublayersTransform.without([(1, "attention"), (3, "mlp")])
    whole = walk_statistics(
        StreamedModel.open(ref, "float32"), tokens, [NLL], unit="sublayer", memory_gib=None, candidates=(2,)
    )
    view = StreamedModel.open(ref.view((SublayersTransform.without([(1, "attention")]),)), "float32")
    assert np.array_equal(
        walk_statistics(view, tokens, [NLL], unit="sublayer", memory_gib=None)[NLL][:, 0], whole[NLL][:, 3]
    )
    streamed = StreamedModel.open(ref.view((gone,)), "float32")
    found = walk_statistics(streamed, tokens, [NLL], unit="sublayer", memory_gib=None)[NLL]
    assert np.array_equal(found[:, 1 + 2], found[:, 0])
    assert parts_of("sublayer", 7) == (3, ("mlp",))
    assert np.array_equal(found[:, 1 + 7], found[:, 0])
