"""Greedy perplexity against a search that scores every shorter model from the start."""

import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from shortened_llm.criteria.greedy_ppl import greedy_ppl_scores
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.walk import BlockWalk
from shortened_llm.scoring.greedy_ppl import measure_greedy_ppl
from tests.conftest import SaveModel, reference_to
from tests.models.families import FAMILIES
from tests.models.test_view import bypassed_logits

PROTECTED = (0, 5)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 97, (4, 16), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model_and_stream(save_random_model: SaveModel, tmp_path) -> tuple[PreTrainedModel, StreamedModel]:
    model, _ = save_random_model(FAMILIES["gemma3"])
    with torch.no_grad():
        for block in find_blocks(model):
            for weight in block.parameters():
                weight.mul_(6 if weight.dim() > 1 else 1)  # blocks of a random model hardly matter
    model.save_pretrained(tmp_path / "model")
    return model, StreamedModel.open(reference_to(tmp_path / "model"), "float32")


def naive(model: PreTrainedModel, tokens: torch.Tensor, num_removed: int) -> tuple[list[int], list[float]]:
    removed: list[int] = []
    perplexity = []
    originals = list(find_blocks(model))
    for _ in range(num_removed):
        scores = {}
        for block in set(range(6)) - set(removed) - set(PROTECTED):
            kept = tuple(b for b in range(6) if b not in (*removed, block))
            logits = bypassed_logits(model, kept, tokens)[:, :-1].double()
            for index, original in enumerate(originals):
                find_blocks(model)[index] = original
            scores[block] = math.exp(-logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).mean().item())
        removed.append(min(scores, key=scores.__getitem__))
        perplexity.append(scores[removed[-1]])
    return removed, perplexity


@pytest.mark.parametrize("states_that_fit", [10_000, 23, 5])
def test_it_is_the_naive_search(model_and_stream, tokens: torch.Tensor, states_that_fit: int) -> None:
    """With every prefix kept, with some, and in passes over the text with none."""
    model, streamed = model_and_stream
    removed, perplexity = naive(model, tokens, 4)
    memory = states_that_fit * 16 * 32 * 4 / 2**30
    losses = measure_greedy_ppl(streamed, tokens, PROTECTED, 4, memory_gib=memory)
    scores = greedy_ppl_scores(losses)
    assert list(scores.order) == [*removed, *PROTECTED]
    assert [scores.scores[block] for block in removed] == pytest.approx(perplexity, rel=1e-5)
    assert [scores.scores[block] for block in PROTECTED] == [None, None]


def test_prefixes_are_not_computed_again(model_and_stream, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed = model_and_stream
    applied: list[int] = []
    apply = BlockWalk.apply_in_place

    def counted(walk, index, module, hidden_states) -> None:
        applied[-1] += len(hidden_states)
        apply(walk, index, module, hidden_states)

    monkeypatch.setattr(BlockWalk, "apply_in_place", counted)
    for states_that_fit in (10_000, 20):
        applied.append(0)
        memory = states_that_fit * 16 * 32 * 4 / 2**30
        measure_greedy_ppl(streamed, tokens, PROTECTED, 4, memory_gib=memory)
    assert applied[0] < 0.9 * applied[1]


def test_blocks_that_stay_are_ordered_by_the_last_step() -> None:
    losses = np.array([[1.0, np.nan, 1.2, 1.1, 1.3, 1.6], [1.1, np.nan, 1.5, np.nan, 1.4, 1.9]])
    scores = greedy_ppl_scores(losses)
    assert scores.order == (2, 3, 1, 4, 0)
    expected = [None, *np.exp([1.5, 1.1, 1.4, 1.9])]
    assert [s and round(s, 9) for s in scores.scores] == [s and round(float(s), 9) for s in expected]
    assert scores.dense_perplexity == pytest.approx(math.e)
