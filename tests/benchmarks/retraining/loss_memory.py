"""Peak memory and time of the chunked loss against cross-entropy on all logits, forward and backward.

The model has no blocks: embeddings, final norm and the tied head of SmolLM2-135M alone.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from shortened_llm.models.build import DTYPES
from shortened_llm.models.head import next_token_labels, training_loss
from tests.benchmarks.peak_memory import PeakMemory
from tests.benchmarks.retraining.processes import Place, run

SEQUENCES, LENGTH, HIDDEN, VOCABULARY = 8, 512, 576, 49_152
TIMED = 3


def against_full_logits(directory: Path, steps: int | None) -> dict:
    """Each in a process of its own."""
    found = {}
    megabytes = 2**20
    print(f"{SEQUENCES} x {LENGTH} tokens, hidden {HIDDEN}, vocabulary {VOCABULARY:,}")
    print(f"{'':10}{'chunked':>20}{'all logits':>20}{'memory':>9}{'time':>8}")
    for dtype in DTYPES:
        ours, plain = (run(_measure, which, dtype, steps or TIMED) for which in ("chunked", "all logits"))
        print(
            f"{dtype:10}"
            + "".join(f"{f['bytes'] / megabytes:8.0f} MiB {f['seconds']:5.2f} s" for f in (ours, plain))
            + f"{ours['bytes'] / plain['bytes']:9.2f}{ours['seconds'] / plain['seconds']:8.2f}"
            + f"   loss differs by {abs(ours['loss'] / plain['loss'] - 1):.0e}, gradient by "
            + f"{abs(ours['gradient_norm'] / plain['gradient_norm'] - 1):.0e}"
        )
        found[dtype] = {"chunked": ours, "all_logits": plain}
    print("memory is what the pass adds to the weights; it includes their gradient")
    return found


def _measure(place: Place, which: str, dtype: str, timed: int) -> dict[str, float]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=0, num_attention_heads=9,
        vocab_size=VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(DTYPES[dtype]).train()
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH))
    labels = next_token_labels(tokens)
    count = int((labels >= 0).sum())

    def forward_backward() -> torch.Tensor:
        model.zero_grad()
        if which == "chunked":
            loss = training_loss(model, tokens, labels) / count
        else:
            logits = model(input_ids=tokens, use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        return loss.detach()

    # Memory first, in a process that has freed nothing yet.
    with PeakMemory() as memory:
        loss = forward_backward()
    seconds = []
    for _ in range(timed):
        started = time.perf_counter()
        forward_backward()
        seconds.append(time.perf_counter() - started)
    norm = torch.stack([p.grad.float().norm() for p in model.parameters() if p.grad is not None]).norm()
    return {"bytes": memory.bytes, "seconds": min(seconds), "loss": loss.item(), "gradient_norm": norm.item()}
