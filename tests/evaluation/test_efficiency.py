"""Efficiency of a view of the tiny model beside the whole, and what is counted of other families."""

import json
import shutil
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from shortened_llm.config import EfficiencyConfig
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation import efficiency
from shortened_llm.evaluation.efficiency import ALIGNMENT, aligned, check_lengths, measure_efficiency
from shortened_llm.evaluation.footprint import kv_bytes_per_token, memory_growth, weight_bytes
from shortened_llm.evaluation.generation import (
    Shape,
    in_turns,
    make_generation,
    only_greedy,
    prompt_tokens,
    time_shares,
)
from shortened_llm.models.axes import widths_of
from shortened_llm.models.cpu import one_thread
from shortened_llm.models.directory import load_config, load_tokenizer, model_directory
from shortened_llm.models.flops import forward_flops
from shortened_llm.models.load import load_model, loaded_bytes
from shortened_llm.records import (
    EfficiencyScore,
    GenerationPoint,
    ModelRef,
    SublayersTransform,
    WidthsTransform,
    from_json,
    to_json,
)
from tests.conftest import SaveModel, keeping, reference_to
from tests.models.families import FAMILIES, INDEXED

KEPT = (0, 1, 4, 6, 7)
SMALL = EfficiencyConfig(batch_sizes=(1, 3), output_lengths=(2, 6), runs=3, warmups=1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """A tiny model gains nothing from more, and loses much where the machine is busy."""
    with one_thread():
        yield


def measure(dense: ModelRef, model: ModelRef, settings: EfficiencyConfig = SMALL, **options: object) -> EfficiencyScore:
    return measure_efficiency(dense, model, settings, dtype="float32", device="cpu", **options)


@pytest.fixture
def generate_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of blocks of the model of each call of `generate`, in order."""
    calls: list[int] = []
    real = GenerationMixin.generate

    def generate(self: PreTrainedModel, *args: object, **kwargs: object) -> object:
        calls.append(self.config.num_hidden_layers)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    return calls


def both(score: EfficiencyScore) -> tuple[list[GenerationPoint], list[GenerationPoint]]:
    """The points of the dense model, and those of the other."""
    return [point.dense for point in score.points], [point.model for point in score.points]


def shapes_of(points: list[GenerationPoint]) -> list[tuple[int, int]]:
    return [(point.batch_size, point.output_tokens) for point in points]


def test_every_shape_is_measured_for_both_in_turns(tiny_model: ModelRef, generate_calls: list[int]) -> None:
    score = measure(tiny_model, tiny_model.view(keeping(KEPT)))
    for points in both(score):
        assert shapes_of(points) == [(1, 2), (3, 2), (1, 6), (3, 6)]
    for point in chain(*both(score)):
        assert 0 < point.time_to_first_token < point.latency
        assert point.throughput == pytest.approx(point.batch_size * point.output_tokens / point.latency)
        assert point.prompt_tokens == 12
        assert point.gpu_utilisation is None
    dense, view = 8, len(KEPT)
    # A warm-up and three runs in turns, then three of the dense model under hooks, then one each for its memory.
    shape = [dense, view, dense, view, view, dense, dense, view, dense, dense, dense, dense, view]
    assert generate_calls == 4 * shape
    assert from_json(EfficiencyScore, to_json(score)) == score


def test_one_model_at_a_time_where_memory_holds_no_two(
    tiny_model: ModelRef, generate_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense model's runs are those before and those after the other's."""
    view = tiny_model.view(keeping(KEPT))
    in_turns = measure(tiny_model, view)
    generate_calls.clear()
    room = loaded_bytes(tiny_model, "float32") + loaded_bytes(view, "float32")
    monkeypatch.setattr(efficiency, "free_memory", lambda device, num_gpus: room)  # no room for caches
    alive: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
    counts = []

    def load(*args: object, **options: object) -> PreTrainedModel:
        model = load_model(*args, **options)
        alive.add(model)
        counts.append(len(alive))
        return model

    monkeypatch.setattr(efficiency, "load_model", load)
    score = measure(tiny_model, view)
    for points in both(score):
        assert shapes_of(points) == shapes_of(both(in_turns)[1])
    # A warm-up, two of three runs, three under hooks and one for memory; a warm-up and three runs of the other and one
    # for its memory; a warm-up and the last run.
    assert generate_calls == 4 * 7 * [8] + 4 * 5 * [5] + 4 * 2 * [8]
    assert "one model in memory" in score.protocol
    assert "in turns" in in_turns.protocol
    assert (score.model, score.dense) == (in_turns.model, in_turns.dense)
    assert score.model.flops_per_token < score.dense.flops_per_token
    assert counts == [1, 1, 1]


def test_the_ideal_speed_up_is_one_without_removal(tiny_model: ModelRef) -> None:
    settings = SMALL.model_copy(update={"batch_sizes": (2,)})
    whole, view = (measure(tiny_model, model, settings) for model in (tiny_model, tiny_model.view(keeping(KEPT))))
    assert [point.ideal_speed_up for point in whole.points] == [1.0, 1.0]
    for point in view.points:
        assert point.ideal_speed_up is not None
        assert point.ideal_speed_up > 1
        assert 0 < point.head_share < point.head_share + point.block_share < 1


def test_the_speed_up_is_the_median_over_the_turns(tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one turn of three the dense model is held up, which moves the mean latency and not the speed-up."""
    calls = iter(range(100))
    real = GenerationMixin.generate

    def generate(self: PreTrainedModel, *args: object, **kwargs: object) -> object:
        # The view waits for twice as long as the whole model, but for the disturbed call, the fourth one.
        time.sleep(3.0 if next(calls) == 3 else {8: 0.3, 5: 0.6}[self.config.num_hidden_layers])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    settings = EfficiencyConfig(batch_sizes=1, output_lengths=1, runs=3, warmups=0)
    score = measure(tiny_model, tiny_model.view(keeping(KEPT)), settings)
    assert score.points[0].dense.latency > 1
    assert score.points[0].dense.latency_deviation > 1
    assert 0.3 < score.points[0].speed_up < 0.9


def test_bytes_and_flops_by_straight_formulas(tiny_model: ModelRef) -> None:
    score = measure(
        tiny_model, tiny_model.view(keeping(KEPT)), EfficiencyConfig(batch_sizes=1, output_lengths=2, runs=1)
    )
    hidden, intermediate, heads, kv_heads, head_dim, vocabulary = 128, 352, 4, 2, 32, 257
    matrices = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate
    for blocks, found in ((8, score.dense), (5, score.model)):
        assert found.kv_bytes_per_token == blocks * 2 * kv_heads * head_dim * 4
        # The tied embedding multiplies as the head.
        assert found.flops_per_token == 2 * (blocks * matrices + vocabulary * hidden)
        assert found.weight_bytes == 4 * (blocks * (matrices + 2 * hidden) + vocabulary * hidden + hidden)


@pytest.mark.parametrize(
    ("family", "cached"),
    [("gemma3", 2 * 2 * 8), ("gpt_neox", 2 * 4 * 8), ("mixtral", 2 * 2 * 8), ("qwen3_moe", 2 * 2 * 8),
     ("deepseek_v3", 8 + 8)],
)  # fmt: skip
def test_cache_and_arithmetic_of_other_families(family: str, cached: int, save_random_model: SaveModel) -> None:
    """`cached`: elements for each block and token: keys and values, or what they are made of (DeepSeek)."""
    config = (FAMILIES | INDEXED)[family]
    _, ref = save_random_model(config)
    whole, view = (load_model(one, "bfloat16") for one in (ref, ref.view(keeping((0, 1, 2, 5)))))
    assert kv_bytes_per_token(whole) == 6 * cached * 2
    assert kv_bytes_per_token(view) == 4 * cached * 2
    assert forward_flops(view) < forward_flops(whole)
    assert weight_bytes(view) < weight_bytes(whole)
    assert forward_flops(whole) == 2 * (_met_by_a_token(whole, config) + config.vocab_size * config.hidden_size)


def _met_by_a_token(model: PreTrainedModel, config: PretrainedConfig) -> int:
    """Elements of the matrices in the blocks, of four experts the two that are chosen."""
    blocks = {name: weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() > 1}
    return sum(weight.numel() // (2 if ".experts." in name else 1) for name, weight in blocks.items())


def test_new_tokens_are_forced_where_the_model_would_stop(tiny_model: ModelRef, tmp_path: Path) -> None:
    """With the first token that it generates as the end-of-text token, and sampling as its own setting."""
    model = load_model(tiny_model, "float32")
    prompt = prompt_tokens(load_tokenizer(model_directory(tiny_model)), 12)
    assert prompt.shape == (1, 12)
    first = model.generate(prompt, max_new_tokens=1, do_sample=False)[0, -1].item()
    directory = tmp_path / "stops"
    shutil.copytree(tiny_model.url, directory)
    own = {"eos_token_id": first, "do_sample": True, "temperature": 5.0, "num_return_sequences": 2}
    (directory / "generation_config.json").write_text(json.dumps(own))
    stopping = load_model(reference_to(directory), "float32")
    assert stopping.generate(prompt, max_new_tokens=20, do_sample=False, num_return_sequences=1).shape[1] == 13

    generated = []
    stopping.register_forward_hook(lambda module, args, output: generated.append(output.logits.shape))
    generate = make_generation(only_greedy(stopping), prompt, Shape(batch_size=3, output_tokens=20), SMALL)
    timing = generate()
    assert [shape[0] for shape in generated] == [3] * 20
    assert 0 < timing.time_to_first_token < timing.latency


@pytest.mark.parametrize(("static", "kind"), [(True, "StaticCache"), (False, "DynamicCache")])
def test_cache(static: bool, kind: str, tiny_model: ModelRef) -> None:
    settings = EfficiencyConfig(batch_sizes=2, output_lengths=(8, 4), runs=2, warmups=1, static_cache=static)
    score = measure(tiny_model, tiny_model.view(keeping(KEPT)), settings)
    assert [point.model.output_tokens for point in score.points] == [4, 8]
    assert f"{'static' if static else 'dynamic'} cache" in score.protocol
    assert score.model.kv_bytes_per_token == 5 * 2 * 2 * 32 * 4

    model = only_greedy(load_model(tiny_model, "float32"))
    prompt = prompt_tokens(load_tokenizer(model_directory(tiny_model)), 12)
    caches = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: caches.append(kwargs["past_key_values"]), with_kwargs=True
    )
    make_generation(model, prompt, Shape(batch_size=2, output_tokens=4), settings)()
    assert {type(cache).__name__ for cache in caches} == {kind}
    assert len(caches) == 4


def test_a_shape_beyond_memory_is_left_out_for_both_with_the_larger_ones(
    tiny_model: ModelRef, logged: pytest.LogCaptureFixture
) -> None:
    settings = EfficiencyConfig(batch_sizes=(2 * 10**13, 1, 10**13), output_lengths=(2, 4), runs=1, warmups=0)
    score = measure_efficiency(tiny_model, tiny_model.view(keeping(KEPT)), settings, dtype="float32", device="cpu")
    for points in both(score):
        assert shapes_of(points) == [(1, 2), (1, 4)]
    assert sum("does not fit" in line for line in logged.messages) == 1  # what is larger is not tried
    assert score.protocol.count("0000 x 2 new tokens") == score.protocol.count("0000 x 4 new tokens") == 2


def test_another_error_is_not_taken_for_lack_of_memory(tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(GenerationMixin, "generate", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        measure(tiny_model, tiny_model.view(keeping(KEPT)))


def test_a_generation_longer_than_the_positions_is_refused(tiny_model: ModelRef) -> None:
    settings = EfficiencyConfig(batch_sizes=1, output_lengths=501, runs=1)
    with pytest.raises(BadInputError, match="513; the model has 512 positions"):
        check_lengths(load_config(model_directory(tiny_model)), settings)


def test_a_model_of_unknown_origin_has_no_ideal_speed_up(tiny_model: ModelRef, tmp_path: Path) -> None:
    load_model(tiny_model.view(keeping(KEPT)), "float32").save_pretrained(tmp_path / "retrained")
    retrained = reference_to(tmp_path / "retrained")
    settings = EfficiencyConfig(batch_sizes=1, output_lengths=4, runs=2, warmups=1)
    known, unknown = (
        measure(tiny_model, replace(retrained, origin=origin), settings).points[0].ideal_speed_up
        for origin in (keeping(KEPT), None)
    )
    assert known is not None
    assert known > 1
    assert unknown is None


def test_shares_are_those_of_the_slow_parts(tiny_model: ModelRef) -> None:
    """Two blocks and the head wait: 2, 1 and 1 parts of nearly all the time."""
    model = only_greedy(load_model(tiny_model, "float32"))
    waiting = {model.model.layers[2]: 0.06, model.model.layers[5]: 0.03, model.lm_head: 0.03}
    for module, seconds in waiting.items():
        _slow_down(module, seconds)
    prompt = prompt_tokens(load_tokenizer(model_directory(tiny_model)), 12)
    generate = make_generation(model, prompt, Shape(batch_size=1, output_tokens=4), SMALL)
    shares = time_shares(model, generate, runs=3)
    assert len(shares.blocks) == 8
    assert shares.blocks[2].whole == pytest.approx(0.5, abs=0.1)
    assert shares.blocks[5].whole == pytest.approx(0.25, abs=0.1)
    assert shares.head == pytest.approx(0.25, abs=0.1)
    assert shares.ideal_speed_up(keeping((0, 1, 3, 4, 5, 6, 7))) == pytest.approx(2, rel=0.25)
    assert shares.ideal_speed_up(()) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_sublayers_and_widths_save_their_share_of_the_time(tiny_model: ModelRef) -> None:
    """An attention and an MLP wait, each for half of nearly all the time."""
    model = only_greedy(load_model(tiny_model, "float32"))
    for module in (model.model.layers[2].self_attn, model.model.layers[5].mlp):
        _slow_down(module, 0.05)
    prompt = prompt_tokens(load_tokenizer(model_directory(tiny_model)), 12)
    shares = time_shares(model, make_generation(model, prompt, Shape(batch_size=1, output_tokens=4), SMALL), runs=3)
    widths = widths_of(model.config)

    def channels(kept: dict[int, int]) -> WidthsTransform:
        return WidthsTransform.keeping(
            num_groups=widths.groups, num_channels=widths.channels, channels={b: range(n) for b, n in kept.items()}
        )

    half = widths.channels // 2
    for shortening, wanted in (
        ((SublayersTransform.without([(2, "attention")]),), 2),
        ((SublayersTransform.without([(2, "mlp"), (5, "attention")]),), 1),
        ((channels(dict.fromkeys(range(8), half)),), 1 / (1 - 0.25)),
        ((channels({5: half}),), 1),  # padded to the widest
        ((*keeping((5,)), channels({5: half})), 1 / 0.25),
        ((*keeping((2, 5)), SublayersTransform.without([(5, "mlp")]), channels({2: half, 5: half})), 2),
    ):
        assert shares.ideal_speed_up(shortening) == pytest.approx(wanted, rel=0.25)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _slow_down(module: nn.Module, seconds: float) -> None:
    forward = module.forward

    def slow(*args: object, **kwargs: object) -> object:
        time.sleep(seconds)
        return forward(*args, **kwargs)

    module.forward = slow


def test_memory_growth_is_what_the_work_holds_at_its_peak() -> None:
    # In a process of its own: where another test has called `prepare_cpu`, freed blocks stay resident.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        growth = process.submit(_growth_of_two_blocks_in_turn).result()
    assert growth == pytest.approx(100 * 2**20, rel=0.1)


def _growth_of_two_blocks_in_turn() -> int:
    def work() -> None:
        torch.ones(50 * 2**20, dtype=torch.uint8)
        torch.ones(100 * 2**20, dtype=torch.uint8).add_(1)

    held = torch.ones(200 * 2**20, dtype=torch.uint8)
    growth = memory_growth(work, ())
    assert len(held) == 200 * 2**20
    return growth


def test_weights_are_moved_to_where_a_cpu_reads_them_fast(tiny_model: ModelRef) -> None:
    model, plain = (load_model(tiny_model, "float32") for _ in range(2))
    assert isinstance(model, PreTrainedModel)
    for weight in model.parameters():  # as a file's header may leave them
        elsewhere = torch.empty(weight.numel() + ALIGNMENT)[1:][: weight.numel()].view(weight.shape)
        weight.data = elsewhere.copy_(weight.data)
        assert weight.data_ptr() % ALIGNMENT
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    aligned(model)
    for weight, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert weight.data_ptr() % ALIGNMENT == 0
        assert torch.equal(weight, expected)
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def test_turns_alternate() -> None:
    order: list[str] = []
    results = in_turns([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert "".join(order) == "abbaab"
    assert [len(one) for one in results] == [3, 3]
