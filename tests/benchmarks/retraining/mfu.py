"""Share of a GPU's peak that our training step reaches on one device.

Needs neither Ray nor the demo's assets.
"""

import time
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shortened_llm.config import RetrainingConfig, TrainingSource
from shortened_llm.data.batches import MicroBatch
from shortened_llm.models.head import next_token_labels
from shortened_llm.retraining.flops import peak_flops, training_flops
from shortened_llm.retraining.recipe import chains
from shortened_llm.retraining.sharding import make_mesh, shard_model
from shortened_llm.retraining.step import make_optimizer, train_step
from tests.benchmarks.retraining.processes import Place, run

# Of known models, with random weights.
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 1000},
    "tinyllama-1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
                       "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32_000},
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
LENGTHS = {"tiny": 64}
LENGTH = 2048
GLOBAL_BATCH = 16
WARM_UP, TIMED = 3, 8
GOAL = 0.5


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a step is run."""

    micro_batch: int
    compiled: bool = False
    checkpointed: bool = False


VARIANTS = (
    *(Variant(micro_batch=size) for size in (2, 4, 8)),
    *(Variant(micro_batch=size, compiled=True) for size in (4, 8)),
    Variant(micro_batch=16, checkpointed=True),
)


def of_one_device(shapes: list[str], steps: int | None) -> dict:
    """bfloat16 compute, float32 weights, AdamW; without a GPU only the tiny shape."""
    if not torch.cuda.is_available() and shapes != ["tiny"]:
        print("skipped: no GPU here (--shape tiny checks the procedure on CPU)")
        return {}
    found = {}
    for shape in shapes:
        length = LENGTHS.get(shape, LENGTH)
        print(f"{shape}: {GLOBAL_BATCH} x {length} tokens a step, on {_device_name()}")
        print(f"{'':44}{'tokens/s':>10}{'TFLOP/s':>10}{'MFU':>8}{'memory':>12}")
        for variant in VARIANTS:
            figures = run(_measure, shape, length, variant, steps or TIMED)
            name = f"micro-batch {variant.micro_batch}" + ", compiled" * variant.compiled
            name += ", activations recomputed" * variant.checkpointed
            found[f"{shape}, {name}"] = figures
            print(f"  {name:42}{_row(figures)}")
    print(f"MFU counts the model's arithmetic alone, all of attention's square (PaLM); goal: at least {GOAL:.0%}")
    return found


def _row(figures: dict) -> str:
    if figures["error"]:
        return f"  {figures['error']}"
    mfu = f"{figures['mfu']:7.1%}" if figures["mfu"] else "      -"
    return (
        f"{figures['tokens_per_second']:10.0f}{figures['flops_per_second'] / 1e12:10.2f} {mfu}"
        f"{figures['memory_bytes'] / 2**30:8.1f} GiB"
    )


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _measure(place: Place, shape: str, length: int, variant: Variant, timed: int) -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with place.process_group(device.type):
            return {"error": None} | _train(shape, length, variant, timed, device)
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}


def _train(shape: str, length: int, variant: Variant, timed: int, device: torch.device) -> dict:
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=False)).float().train()
    budget = (WARM_UP + timed) * GLOBAL_BATCH * length
    config = RetrainingConfig(
        data=(TrainingSource(path="none.jsonl"),),
        tokens=budget,
        sequence_length=length,
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=variant.micro_batch,
        compile=variant.compiled,
        activation_checkpointing=variant.checkpointed,
    )
    ((recipe,),) = chains(config, "cpt", budget, num_pairs=0)
    flops = training_flops(model, length)
    shard_model(model, make_mesh(device, 1, None), "bfloat16", config)
    optimizer = make_optimizer(model, recipe)
    tokens = torch.randint(SHAPES[shape]["vocab_size"], (GLOBAL_BATCH, length), device=device)
    batches = [
        MicroBatch(input_ids=part, labels=next_token_labels(part), position_ids=None, first_position=0)
        for part in tokens.split(variant.micro_batch)
    ]
    predictions = GLOBAL_BATCH * (length - 1)
    for step in range(WARM_UP + timed):
        if step == WARM_UP:
            _wait(device)
            started = time.perf_counter()
        train_step(
            model, optimizer, batches, recipe,
            num_predictions=predictions, world_size=1, teacher=None, gathers_once=True,
        )  # fmt: skip
    _wait(device)
    speed = timed * tokens.numel() / (time.perf_counter() - started)
    peak = peak_flops(device)
    return {
        "tokens_per_second": speed,
        "flops_per_second": speed * flops,
        "mfu": speed * flops / peak if peak else None,
        "memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
