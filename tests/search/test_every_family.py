"""Every causal language model of the installed transformers, small: each step of a job is right, or refused.

Right is told without the product's own arithmetic: by the family's forward pass, by blocks that pass on what they get,
by a document alone. A new release of transformers is checked by running this.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jobs.assets.tiny import byte_tokenizer
from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import empty_model
from shortened_llm.models.bypass import bypassing
from shortened_llm.models.head import final_hidden, next_token_labels, token_nll, training_loss
from shortened_llm.models.isolation import choose_isolation, document_inputs
from shortened_llm.models.load import load_model
from shortened_llm.models.parts import part_name
from shortened_llm.models.shards import fill_shards
from shortened_llm.models.stream import StreamedModel
from shortened_llm.records import BlocksTransform, LoraOptions, SublayersTransform
from shortened_llm.retraining.adapters import inject_adapters, is_adapter
from shortened_llm.retraining.export import gathered
from shortened_llm.scoring.one_pass import NLL, walk_statistics
from shortened_llm.search.preflight_toy import (
    Toy,
    try_export,
    try_plan,
    try_scoring,
    try_sublayers,
    try_training,
)
from tests.conftest import keeping

NUM_BLOCKS = 3
LORA = LoraOptions(rank=2, alpha=4.0, dropout=0.0, target_modules=())
LENGTHS = (9, 17, 6)
"""Tokens of packed documents."""
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# Families that people bring, with the steps that are refused; every other one must be right.
RIGHT = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi",
    "phi3", "olmo", "olmo2", "gpt2", "gpt_neox", "opt", "falcon", "granite", "cohere", "cohere2", "smollm3",
    "starcoder2", "stablelm", "glm4_moe", "deepseek_v3", "gpt_oss", "nemotron", "ernie4_5", "exaone4",
    "hunyuan_v1_dense",
)  # fmt: skip
REFUSED = {
    "falcon_h1": {"isolation", "sublayers"}, "bloom": {"scoring", "isolation", "sublayers"}, "opt": {"sublayers"},
    "gpt_oss": {"sublayers"},
}  # fmt: skip
EXPECTED: dict[str, set[str]] = {name: set[str]() for name in RIGHT} | REFUSED


NO_PLAIN_DECODERS = ("phi4_multimodal", "blt", "git", "xlnet", "xlm")
SIZES = {"vocab_size": 257, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# What families leave open, or make lists of.
MORE: dict[str, dict[str, object]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "nemotron": {"num_key_value_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4},
    "gemma3n_text": {"vocab_size_per_layer_input": 257, "num_kv_shared_layers": 0},
}


def small_toy(name: str) -> Toy:
    """Of three blocks and a small vocabulary; where a family's lists over the blocks are longer, its own number."""
    for values in ({"num_hidden_layers": NUM_BLOCKS, **SIZES, **MORE.get(name, {})}, SIZES, {}):
        try:
            return Toy(CONFIG_MAPPING[name](**values), byte_tokenizer())
        except Exception:  # whatever a class makes of numbers that do not fit together
            continue
    pytest.skip(f"{name}: no model of its defaults can be built")


@pytest.mark.parametrize("name", FAMILIES)
def test_each_step_is_right_or_refused(name: str) -> None:
    if getattr(CONFIG_MAPPING[name], "is_decoder", True) is False and not name.startswith("gpt_neox"):
        pytest.skip(f"{name} is an encoder, or half of one, that can also be built as a decoder")
    if name in NO_PLAIN_DECODERS:
        pytest.skip(f"{name} is more than a decoder of text, and takes long to build")
    refused: set[str] = set()
    with small_toy(name) as toy:
        steps: dict[str, tuple[Callable[[], object], Callable[[Toy], None]]] = {
            "scoring": (lambda: try_scoring(toy, ["ppl", "kl", "taylor"]), check_scoring),
            "adapters": (lambda: try_training(toy, lora=LORA, isolate_documents=False), check_adapters),
            "training": (lambda: try_training(toy, lora=None, isolate_documents=False), check_training),
            "isolation": (lambda: None, check_isolated),
            "export": (lambda: try_export(toy), check_export),
            "plan": (lambda: try_plan(toy.config, toy, cut(toy)), check_plan),
            "sublayers": (lambda: try_sublayers(toy), check_sublayers),
        }
        for step, (rehearse, check) in steps.items():
            try:
                rehearse()
                check(toy)
            except BadInputError:
                refused.add(step)
    assert refused == EXPECTED.get(name, refused)


def cut(toy: Toy) -> tuple[BlocksTransform, ...]:
    return keeping([block for block in range(toy.ref.num_blocks) if block != toy.ref.num_blocks // 2])


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> None:
    scale = wanted.abs().max().clamp(min=1e-3)
    assert (found - wanted).abs().max() <= tolerance * scale, f"{(found - wanted).abs().max():.3g} of {scale:.3g}"


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False).logits.float()


def losses_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def check_scoring(toy: Toy) -> None:
    """The walk's loss without a block is that of a model in which the block passes on what it gets."""
    tokens, without = toy.tokens, toy.ref.num_blocks // 2
    model = StreamedModel.open(toy.ref, "float32")
    found = walk_statistics(model, tokens, {NLL}, memory_gib=None, candidates=(without,))
    nll = torch.from_numpy(found[NLL])
    close(nll[:, 0], losses_of(logits_of(toy.model, tokens), tokens).mean(dim=1).double())
    close(nll[:, 1 + without], losses_of(bypassed(toy), tokens).mean(dim=1).double())


def check_training(toy: Toy) -> None:
    """Loss and gradients are those of plain cross-entropy."""
    model, tokens = toy.model, toy.tokens
    labels = next_token_labels(tokens)
    plain = losses_of(model(input_ids=tokens, use_cache=False).logits.float(), tokens)
    close(token_nll(model, tokens, labels)[:, :-1], plain.detach())
    gradients = []
    for loss in (training_loss(model, tokens, labels), plain.sum()):
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad(set_to_none=True)
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


def check_adapters(toy: Toy) -> None:
    """A model with adapters that are far from zero computes what it computes with them merged: layer by layer the
    rehearsal has compared them at the level of rounding, which some families amplify a thousandfold."""
    adapted = empty_model(toy.config)
    inject_adapters(adapted, LORA)
    fill_shards(adapted, toy.ref, device="cpu", initialise=lambda _, shape: torch.zeros(shape))
    adapted.eval()
    plain = logits_of(adapted, toy.tokens)
    close(plain, logits_of(toy.model, toy.tokens), 1e-6)
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in adapted.named_parameters():
        if is_adapter(parameter_name):
            parameter.data.normal_(0, 0.3, generator=generator)
    merged = empty_model(toy.config)
    merged.load_state_dict(dict(gathered(adapted, tuple(merged.state_dict()))), assign=True)
    merged.tie_weights()
    moved = logits_of(adapted, toy.tokens)
    assert (moved - plain).abs().max() > 1e-3 * plain.abs().max()
    close(logits_of(merged.eval(), toy.tokens), moved, 0.02)


@torch.no_grad()
def check_isolated(toy: Toy) -> None:
    """Each of several packed documents has the hidden states that it has alone. Raises as `choose_isolation`."""
    model = toy.model
    tokens = torch.randint(toy.config.vocab_size, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    inputs = document_inputs(positions, choose_isolation(toy.config), model.config, torch.float32)
    packed = final_hidden(model, tokens, inputs)
    alone = torch.cat([final_hidden(model, document) for document in tokens.split(LENGTHS, dim=1)], dim=1)
    close(packed, alone, 1e-3)


def check_export(toy: Toy) -> None:
    """Plain transformers reads the model that was written, whatever it makes of a padding token's row."""
    reloaded = AutoModelForCausalLM.from_pretrained(toy.directory / "dense", dtype=torch.float32).eval()
    assert torch.equal(logits_of(reloaded, toy.tokens), logits_of(toy.model, toy.tokens))


def check_plan(toy: Toy) -> None:
    """The model of a plan computes what the dense one does where the other blocks pass on what they get."""
    close(logits_of(load_model(toy.ref.view(cut(toy)), "float32"), toy.tokens), bypassed(toy), 1e-5)


def check_sublayers(toy: Toy) -> None:
    """The model without an attention and an MLP computes what the dense one does where hooks make both zero."""
    blocks, middle = find_blocks(toy.model), toy.ref.num_blocks // 2
    removed = SublayersTransform.without([(0, "attention"), (middle, "mlp")])

    def nothing(_: object, __: object, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        is_tuple = isinstance(output, tuple)
        return (torch.zeros_like(output[0]), *output[1:]) if is_tuple else torch.zeros_like(output)

    hooks = [
        blocks[block].get_submodule(part_name(blocks[block], part)).register_forward_hook(nothing)
        for block, part in removed.removed
    ]
    wanted = logits_of(toy.model, toy.tokens)
    for hook in hooks:
        hook.remove()
    close(logits_of(load_model(toy.ref.view((removed,)), "float32"), toy.tokens), wanted, 1e-5)


def bypassed(toy: Toy) -> torch.Tensor:
    """Logits of the toy in which the middle block passes on what it gets."""
    with torch.no_grad(), bypassing(toy.model, [toy.ref.num_blocks // 2], toy.tokens):
        return logits_of(toy.model, toy.tokens)
