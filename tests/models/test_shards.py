"""Weights that go straight into shards are those that `load_model` gives, in every process."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, inject_adapter_in_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from shortened_llm.config import RetrainingConfig
from shortened_llm.errors import BadInputError
from shortened_llm.models.build import empty_model
from shortened_llm.models.directory import load_config
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import fill_shards, plain_name
from shortened_llm.models.view import empty_view
from shortened_llm.records import ModelRef, SublayersTransform, WidthsTransform
from shortened_llm.retraining.export import gathered
from shortened_llm.retraining.sharding import open_sharded
from tests.conftest import SaveModel, keeping, reference_to
from tests.models.families import FAMILIES, INDEXED

CPU = torch.device("cpu")
KEPT = (0, 2, 3, 5)
ALL = FAMILIES | INDEXED
EMBEDDINGS = "model.embed_tokens.weight"


def unsharded(ref: ModelRef, dtype: str = "float32") -> PreTrainedModel:
    model = empty_view(ref, dtype).eval()
    fill_shards(model, ref, device=CPU)
    return model


def with_adapters(model: PreTrainedModel) -> None:
    """LoRA on frozen bfloat16 weights, as a retraining method may want it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]), model, low_cpu_mem_usage=True)


def by_name(name: str, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    """The same parameters, buffers and logits, bit for bit."""
    with torch.no_grad():
        for kind in (torch.nn.Module.named_parameters, torch.nn.Module.named_buffers):
            found = {plain_name(name): whole(tensor) for name, tensor in kind(model)}
            wanted = dict(kind(expected))
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert found[name].dtype == tensor.dtype, name
                assert torch.equal(found[name], tensor), name
        tokens = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
        logits = model.eval()(input_ids=tokens, use_cache=False).logits
        assert torch.equal(logits, expected(input_ids=tokens, use_cache=False).logits)


@pytest.mark.parametrize("family", ALL)
def test_a_filled_view_is_the_loaded_one(family: str, save_random_model: SaveModel) -> None:
    _, ref = save_random_model(ALL[family])
    assert_same(unsharded(ref.view(keeping(KEPT))), load_model(ref.view(keeping(KEPT)), "float32"))


def placement(*, checkpointed: bool) -> RetrainingConfig:
    """Where and how, for `open_sharded`; the data and the budget are not read."""
    return RetrainingConfig(data={"path": "unread"}, tokens=2**20, activation_checkpointing=checkpointed)  # type: ignore[arg-type]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama_tied", "qwen3", "gemma3", "gpt_neox", "mixtral", "deepseek_v3"])
def test_a_sharded_view_is_the_loaded_one(
    family: str, activation_checkpointing: bool, save_random_model: SaveModel
) -> None:
    _, ref = save_random_model(ALL[family])
    mesh, how = init_device_mesh("cpu", (1,)), placement(checkpointed=activation_checkpointing)
    model = open_sharded(ref.view(keeping(KEPT)), mesh, "float32", how, device=CPU, sequence_length=1024)
    assert model.training
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    tied = ALL[family].tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert_same(model, load_model(ref.view(keeping(KEPT)), "float32"))
    loaded = load_model(ref.view(keeping(KEPT)), "float32").state_dict()
    whole = dict(gathered(model, tuple(loaded)))
    assert whole.keys() == loaded.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in loaded.items())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_cast_from_the_type_of_the_files(
    dtype: str, stored: torch.dtype, change: Callable[..., ModelRef]
) -> None:
    ref = change("mixtral", lambda tensors: tensors.update({name: t.to(stored) for name, t in tensors.items()}))
    assert_same(unsharded(ref, dtype), load_model(ref, dtype))


def test_generation_settings_come_along(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    GenerationConfig(do_sample=True, temperature=0.5).save_pretrained(ref.url)
    assert unsharded(reference_to(Path(ref.url))).generation_config.temperature == 0.5


@pytest.mark.usefixtures("process_group")
def test_adapters_need_a_first_value(save_random_model: SaveModel) -> None:
    _, ref = save_random_model(FAMILIES["llama"])
    mesh = init_device_mesh("cpu", (1,))
    with pytest.raises(BadInputError, match=r"lacks 16 tensors .* model\.layers\.0\.mlp\.down_proj\.lora_A"):
        open_sharded(
            ref.view(keeping(KEPT)),
            mesh,
            "float32",
            placement(checkpointed=True),
            device=CPU,
            sequence_length=1024,
            prepare=with_adapters,
        )


def test_a_first_value_is_for_adapters_alone(change: Callable[..., ModelRef]) -> None:
    ref = change("llama", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(BadInputError, match=r"model\.norm\.weight"):
        fill_shards(empty_model(load_config(Path(ref.url))), ref, device=CPU, initialise=by_name)


def test_tied_weights_may_be_stored_twice_but_not_with_two_values(change: Callable[..., ModelRef]) -> None:
    twice = change("llama_tied", lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDINGS].clone()}))
    assert_same(unsharded(twice), load_model(twice, "float32"))
    differ = change("llama_tied", lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDINGS] + 1}))
    with pytest.raises(BadInputError, match=r"two values for .*lm_head\.weight"):
        unsharded(differ)


# In four processes: 97 rows of embeddings and 3 experts leave uneven and empty parts; Qwen's shared gate has one row.
UNEVEN: dict[str, PretrainedConfig] = {
    "llama_tied": FAMILIES["llama_tied"],
    "mixtral": type(FAMILIES["mixtral"])(**FAMILIES["mixtral"].to_dict() | {"num_local_experts": 3}),
    "qwen2_moe_step": INDEXED["qwen2_moe_step"],
}


def test_four_processes_hold_the_loaded_view_together(save_random_model: SaveModel, tmp_path: Path) -> None:
    refs = [save_random_model(config)[1].view(keeping(KEPT)) for config in UNEVEN.values()]
    narrow = WidthsTransform.keeping(  # 17 of 48 channels, in four processes
        num_groups=2, num_channels=48, groups={b: [b % 2] for b in range(6)}, channels={b: range(17) for b in range(6)}
    )
    lacking = SublayersTransform.without([(0, "attention"), (3, "mlp")])
    refs.append(save_random_model(FAMILIES["qwen3"])[1].view((*keeping(KEPT), narrow, lacking)))
    mp.spawn(_check_shards, args=(f"file://{tmp_path}/rendezvous", refs), nprocs=4)


def _check_shards(rank: int, rendezvous: str, refs: list[ModelRef]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=4)
    one, two = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for ref in refs:
        expected = load_model(ref, "float32")
        for mesh in (one, two):
            model = open_sharded(ref, mesh, "float32", placement(checkpointed=True), device=CPU, sequence_length=1024)
            held = torch.tensor(sum(parameter.to_local().numel() for parameter in model.parameters()))
            dist.all_reduce(held)
            assert held * mesh.size(-1) == 4 * sum(parameter.numel() for parameter in expected.parameters())
            assert_same(model, expected)
            names = tuple(expected.state_dict())
            assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in gathered(model, names))
    for mesh in (one, two):
        _check_adapters(refs[0], mesh)
    dist.destroy_process_group()


def _check_adapters(ref: ModelRef, mesh: DeviceMesh) -> None:
    """Frozen weights in bfloat16, adapters as made, whatever the number of processes."""
    model = open_sharded(
        ref,
        mesh,
        "bfloat16",
        placement(checkpointed=True),
        device=CPU,
        sequence_length=1024,
        prepare=with_adapters,
        initialise=by_name,
    )
    expected = dict(load_model(ref, "bfloat16").named_parameters())
    adapters = 0
    for name, parameter in model.named_parameters():
        name, value = plain_name(name), parameter.full_tensor()
        adapters += name not in expected
        wanted = expected[name] if name in expected else by_name(name, value.shape)
        assert torch.equal(value, wanted.detach()), name
    assert adapters == 4 * ref.num_loaded_blocks
