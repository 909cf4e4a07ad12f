"""Criteria against independent computations of their formulas, and against planted structure."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GptOssConfig, PretrainedConfig, PreTrainedModel

from shortened_llm import logs
from shortened_llm.criteria.angular_span import angular_span_scores
from shortened_llm.criteria.block_influence import block_influence_scores
from shortened_llm.criteria.criterion import CriterionScores, mean_scores
from shortened_llm.criteria.last_n import last_n_scores
from shortened_llm.criteria.magnitude import MagnitudeOptions
from shortened_llm.criteria.ppl import ppl_scores
from shortened_llm.criteria.random_order import random_scores
from shortened_llm.criteria.taylor import TaylorOptions
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.logs import about
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.vocabulary import TILE_TOKENS, TILE_VOCABULARY
from shortened_llm.models.walk import TOKEN_BYTES_PER_CALL
from shortened_llm.scoring.magnitude import measure_magnitude
from shortened_llm.scoring.one_pass import ANGLE, COSINE, KL, NLL, walk_statistics
from shortened_llm.scoring.taylor import measure_taylor
from tests.conftest import SaveModel, reference_to
from tests.models.families import COMMON, EXPERTS, FAMILIES
from tests.models.test_view import bypassed_logits

ALL = (NLL, KL, COSINE, ANGLE)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 97, (5, 16), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def reopened(tmp_path: Path) -> Callable[[PreTrainedModel], StreamedModel]:
    """A changed model, saved and opened for streaming."""

    def save(model: PreTrainedModel) -> StreamedModel:
        model.save_pretrained(tmp_path / "changed")
        return StreamedModel.open(reference_to(tmp_path / "changed"), "float32")

    return save


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every loop over tiles has several, the last one partly filled."""
    monkeypatch.setitem(TILE_TOKENS, "cpu", 24)
    monkeypatch.setitem(TILE_VOCABULARY, "cpu", 40)
    monkeypatch.setitem(TOKEN_BYTES_PER_CALL, "cpu", 4 * 48)


def statistics(streamed: StreamedModel, tokens: torch.Tensor, *names: str, **options: object) -> dict[str, np.ndarray]:
    return walk_statistics(streamed, tokens, names, **{"memory_gib": None, **options})


def ppl(streamed: StreamedModel, tokens: torch.Tensor) -> CriterionScores:
    return ppl_scores(statistics(streamed, tokens, NLL)[NLL])


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, :-1].double().log_softmax(dim=-1)


def hidden_states(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Before each block and after the last, before the final norm; [blocks + 1, sequences, length, hidden]."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _, args, kwargs, output: seen.extend([args[0], output[0] if isinstance(output, tuple) else output]),
            with_kwargs=True,
        )
        for block in find_blocks(model)
    ]
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack([*seen[::2], seen[-1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_one_walk_is_bypassing_each_block(family: str, save_random_model: SaveModel, tokens) -> None:
    model, reference = save_random_model(FAMILIES[family])
    found = statistics(StreamedModel.open(reference, "float32"), tokens, *ALL)
    blocks = range(len(find_blocks(model)))
    with torch.inference_mode():
        dense = log_probabilities(model(input_ids=tokens, use_cache=False).logits)
    states = hidden_states(model, tokens).double()
    gold = tokens[:, 1:, None]
    scores, divergences = ppl_scores(found[NLL]), mean_scores(found[KL])
    assert scores.dense_perplexity == pytest.approx(math.exp(-dense.gather(2, gold).mean().item()), rel=1e-5)
    originals = list(find_blocks(model))
    for block in blocks:
        without = log_probabilities(bypassed_logits(model, tuple(b for b in blocks if b != block), tokens))
        find_blocks(model)[block] = originals[block]
        expected = math.exp(-without.gather(2, gold).mean().item())
        assert scores.scores[block] == pytest.approx(expected, rel=1e-5)
        expected = (dense.exp() * (dense - without)).sum(dim=-1).mean().item()
        assert divergences.scores[block] == pytest.approx(expected, rel=1e-3, abs=2e-6)
    cosine = torch.cosine_similarity(states[:-1], states[1:], dim=-1).mean(dim=(1, 2))
    assert block_influence_scores(found[COSINE]).scores == pytest.approx((1 - cosine).tolist(), rel=1e-3, abs=1e-6)
    last = states[:, :, -1]
    for start in blocks:
        for end in range(start + 1, len(blocks) + 1):
            angle = torch.cosine_similarity(last[start], last[end], dim=-1).arccos().mean() / math.pi
            assert found[ANGLE][:, start, end].mean() == pytest.approx(angle.item(), rel=1e-4, abs=1e-5)


def test_passes_calls_and_candidates_change_nothing(save_random_model: SaveModel, tokens) -> None:
    streamed = StreamedModel.open(save_random_model(FAMILIES["gemma3"])[1], "float32")
    whole = statistics(streamed, tokens, *ALL)
    cut = statistics(streamed, tokens, *ALL, memory_gib=2 * 7 * 16 * 32 * 4 / 2**30)  # two sequences at a time
    for name in ALL:
        assert cut[name] == pytest.approx(whole[name], rel=1e-6, abs=1e-7)
    some = statistics(streamed, tokens, NLL, candidates=(1, 4))[NLL]
    assert some[:, [0, 2, 5]] == pytest.approx(whole[NLL][:, [0, 2, 5]], rel=1e-6)
    assert np.isnan(some[:, [1, 3, 4, 6]]).all()


def independent_importance(
    model: PreTrainedModel, importance: Callable[[torch.Tensor], torch.Tensor], power: int, outputs: str, block: str
) -> list[float]:
    """Matrices of GPT-2 and experts of gpt-oss are stored as [inputs, outputs]."""
    kind = model.config.model_type
    reduce = {"sum": sum, "mean": lambda values: sum(values) / len(values), "max": max}
    result = []
    for index in range(len(find_blocks(model))):
        per_weight = []
        for name, weight in find_blocks(model)[index].named_parameters():
            if name.endswith(("bias", "sinks")):
                continue
            found = importance(weight).double()
            if (kind == "gpt2" and weight.dim() == 2) or (kind == "gpt_oss" and weight.dim() == 3):
                found = found.transpose(-1, -2)
            rows = found.reshape(-1, found.shape[-1]) if weight.dim() > 1 else None
            values = (rows**power).sum(dim=1) if rows is not None else found**power
            per_weight.append(reduce[outputs](values.tolist()))
        result.append(reduce[block](per_weight))
    return result


OPTIONS = [(1, "sum", "sum"), (2, "mean", "max"), (1, "max", "mean")]
CASES = [(family, *OPTIONS[0]) for family in FAMILIES] + [("qwen2", *OPTIONS[1]), ("mixtral", *OPTIONS[2])]
INPUTS_FIRST: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=6, n_head=4, n_positions=128),
    "gpt_oss": GptOssConfig(**COMMON, **EXPERTS, head_dim=8, sliding_window=8),
}
CASES += [(family, *OPTIONS[2]) for family in INPUTS_FIRST]


@pytest.mark.parametrize(("family", "power", "outputs", "block"), CASES)
def test_taylor_and_magnitude_are_their_formulas(
    family: str, power: int, outputs: str, block: str, save_random_model: SaveModel, tokens
) -> None:
    """Taylor one block at a time against full autograd."""
    model, reference = save_random_model((FAMILIES | INPUTS_FIRST)[family])
    loss = F.cross_entropy(model(input_ids=tokens).logits[:, :-1].transpose(1, 2), tokens[:, 1:])
    loss.backward()
    gradients = {id(p): torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()}
    names = {"power": power, "output_reduction": outputs, "block_reduction": block}
    streamed = StreamedModel.open(reference, "float32")

    taylor = measure_taylor(streamed, tokens, TaylorOptions(**names), memory_gib=None)
    expected = independent_importance(model, lambda w: (w * gradients[id(w)]).abs().detach(), power, outputs, block)
    assert taylor == pytest.approx(expected, rel=1e-4)

    magnitude = measure_magnitude(streamed, MagnitudeOptions(**names))
    expected = independent_importance(model, lambda w: w.abs().detach(), power, outputs, block)
    assert magnitude == pytest.approx(expected, rel=1e-6)


def test_a_planted_identity_block_changes_nothing_and_goes_first(
    save_random_model: SaveModel, reopened: Callable[[PreTrainedModel], StreamedModel], tokens
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for block in find_blocks(model):
            for weight in block.parameters():
                weight.mul_(8 if weight.dim() > 1 else 1)  # blocks of a random model hardly matter
        planted = find_blocks(model)[3]
        planted.self_attn.o_proj.weight.zero_()
        planted.mlp.down_proj.weight.zero_()
    found = statistics(reopened(model), tokens, *ALL)
    scores = ppl_scores(found[NLL])
    assert scores.scores[3] == pytest.approx(scores.dense_perplexity, rel=1e-6)
    assert scores.standard_errors is not None
    assert scores.standard_errors[3] == pytest.approx(0, abs=1e-4)
    assert mean_scores(found[KL]).scores[3] == pytest.approx(0, abs=1e-6)
    influence, spans = block_influence_scores(found[COSINE]), angular_span_scores(found[ANGLE], protected=())
    assert influence.scores[3] == pytest.approx(0, abs=1e-6)
    assert mean_scores(found[KL]).order[0] == influence.order[0] == spans.order[0] == 3
    assert spans.sets is not None
    assert spans.sets[0] == (3,)


def test_duplicated_or_permuted_calibration_changes_nothing(save_random_model: SaveModel, tokens) -> None:
    streamed = StreamedModel.open(save_random_model(FAMILIES["llama"])[1], "float32")
    scores = ppl(streamed, tokens)
    for other in (tokens.repeat(2, 1), tokens.flip(0)):
        assert ppl(streamed, other).scores == pytest.approx(scores.scores, rel=1e-6)


def test_standard_errors_are_of_the_paired_difference_over_sequences() -> None:
    nll = np.array([[2.0, 2.5, 3.0], [4.0, 4.5, 4.0], [3.0, 3.5, 3.2]])
    scores = ppl_scores(nll)
    assert scores.standard_errors is not None
    assert scores.standard_errors[0] == pytest.approx(0), "a block that costs every sequence the same has no error"
    error = np.std([1.0, 0.0, 0.2], ddof=1) / math.sqrt(3)
    assert scores.standard_errors[1] == pytest.approx(error * math.exp(np.mean([3.0, 4.0, 3.2])))
    assert ppl_scores(nll[:1]).standard_errors is None


def test_a_span_never_holds_a_protected_block() -> None:
    """The best spans of one and two blocks hold block 0 or 4; the best ones without them are chosen instead."""
    places = np.array([0.0, 0.01, 0.3, 0.5, 0.6, 0.61, 0.9])
    angles = np.abs(places[:, None] - places[None])[None]
    assert angular_span_scores(angles, protected=()).sets[:2] == ((0,), (3, 4))
    assert angular_span_scores(angles, protected=(0, 4)).sets == ((3,), (2, 3), (1, 2, 3))
    assert angular_span_scores(angles, protected=(0, 4)).order[:2] == (0, 4), "the order is before protection"


def test_controls() -> None:
    assert last_n_scores(5).order == (4, 3, 2, 1, 0)
    orders = {random_scores(12, seed).order for seed in range(4)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert random_scores(12, 3) == random_scores(12, 3)


def test_equal_scores_keep_the_order_of_the_blocks(
    save_random_model: SaveModel, reopened: Callable[[PreTrainedModel], StreamedModel]
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        for weight in nn.ParameterList(p for b in find_blocks(model) for p in b.parameters()):
            weight.fill_(1.0)
    scores = measure_magnitude(reopened(model), MagnitudeOptions())
    assert CriterionScores(scores=tuple(scores.tolist())).order == tuple(range(6))


def test_a_nan_is_named_by_block_and_sequence(
    save_random_model: SaveModel, reopened: Callable[[PreTrainedModel], StreamedModel], tokens
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        model.get_input_embeddings().weight[int(tokens[2, 0])] = float("nan")
    first = int((tokens == tokens[2, 0]).any(dim=1).nonzero()[0])
    streamed = reopened(model)
    few = 7 * 16 * 32 * 4 / 2**30  # one sequence at a time: the number is that of the whole set
    with pytest.raises(NonFiniteLossError, match=rf"dense model has loss nan on calibration sequence {first}"):
        statistics(streamed, tokens, NLL, memory_gib=few)
    with pytest.raises(NonFiniteLossError, match=rf"block 0 .* sequence {first}"):
        statistics(streamed, tokens, COSINE)
    with pytest.raises(NonFiniteLossError, match=r"block 0 turns the last token by angle nan"):
        statistics(streamed, tokens, ANGLE)
    with pytest.raises(NonFiniteLossError, match=rf"taylor: .* sequence {first}"):
        measure_taylor(streamed, tokens, TaylorOptions(), memory_gib=None)


def test_a_nan_among_the_weights_is_named(
    save_random_model: SaveModel, reopened: Callable[[PreTrainedModel], StreamedModel]
) -> None:
    model, _ = save_random_model(FAMILIES["llama"])
    with torch.no_grad():
        find_blocks(model)[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="magnitude: block 2 has score nan"):
        measure_magnitude(reopened(model), MagnitudeOptions())


def test_taylor_refuses_what_does_not_fit(save_random_model: SaveModel, tokens) -> None:
    streamed = StreamedModel.open(save_random_model(FAMILIES["llama"])[1], "float32")
    room_for_two = 2 * 11 * 16 * 32 * 4 / 2**30
    with pytest.raises(BadInputError, match="all 5 sequences, and memory has room for 2"):
        measure_taylor(streamed, tokens, TaylorOptions(), memory_gib=room_for_two)


def test_progress_counts_to_its_end(
    save_random_model: SaveModel, tokens, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_STEPS", 0.0)
    streamed = StreamedModel.open(save_random_model(FAMILIES["llama"])[1], "float32")
    for measure in (
        lambda: statistics(streamed, tokens, NLL),
        lambda: statistics(streamed, tokens, COSINE),
        lambda: measure_taylor(streamed, tokens, TaylorOptions(), memory_gib=None),
    ):
        logged.clear()
        measure()
        assert not logged.messages  # of a toy
        with about("score"):
            measure()
        steps = [tuple(map(int, line.split(",")[0].split("/"))) for line in logged.messages]
        assert len(steps) > 1
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})
        assert {total for _, total in steps} == {steps[-1][0]}
