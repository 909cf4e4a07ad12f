"""Every step of a job on a toy of the model, before anything is spent: what fails at the end is tried at the start."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import WeightPruning, WidthPruning
from shortened_llm.criteria import CRITERIA
from shortened_llm.criteria.criterion import NLL, CriterionOptions
from shortened_llm.errors import BadInputError, Faults, brief
from shortened_llm.models.axes import widths_of
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import empty_model
from shortened_llm.models.directory import load_config
from shortened_llm.models.export import check_generation, export_view, probe_tokens
from shortened_llm.models.head import IGNORE, check_head, next_token_labels, training_loss
from shortened_llm.models.isolation import choose_isolation
from shortened_llm.models.linears import linear_inputs
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import fill_shards
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.toy import build_toy
from shortened_llm.models.transforms import KINDS
from shortened_llm.models.view import check_transforms
from shortened_llm.pruning.compensation import Projections, compensated
from shortened_llm.pruning.weight.layerwise import pruned_blocks
from shortened_llm.pruning.weight.pattern import Pattern, parse_pattern
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.pruning.weight.shares import DenseModel, shares_of_blocks
from shortened_llm.records import LoraOptions, ModelRef, PruneUnit, SublayersTransform, Transform, WidthsTransform
from shortened_llm.retraining.adapters import (
    adapted_layers,
    check_neutral,
    gathered_adapter,
    initial_adapter,
    inject_adapters,
    is_adapter,
    save_adapter,
    verify_adapter,
)
from shortened_llm.retraining.export import gathered
from shortened_llm.scoring.measure import MEASUREMENTS, Inputs, walked
from shortened_llm.scoring.one_pass import walk_statistics

SEQUENCES, LENGTH = 2, 12
TOLERANCE = 1e-4
"""Relative, of fp32 numbers that are computed in two ways."""
OF_UNITS = {"field": "pruning.unit", "advice": "use unit: block"}
"""Where another family is not the only way out."""


class Toy:
    """A toy of a model with its files, in a temporary directory, while the context lasts."""

    def __init__(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `BadInputError` where no toy of the family can be built and saved."""
        self.model = build_toy(config)
        self._temporary = tempfile.TemporaryDirectory(prefix="shortened_llm_toy_")
        self.directory = Path(self._temporary.name)
        with _trying(config, "saved"):
            self.model.save_pretrained(self.directory / "dense")
            tokenizer.save_pretrained(self.directory / "dense")
            self.config = load_config(self.directory / "dense")  # as files say it: saving changes the model's own
        self.ref = ModelRef(
            url=str(self.directory / "dense"), fingerprint="", files=(), num_blocks=config.num_hidden_layers
        )
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(self.model.config.vocab_size, (SEQUENCES, LENGTH), generator=generator)

    def __enter__(self) -> "Toy":
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def streamed(self) -> StreamedModel:
        """The toy, read block by block."""
        return StreamedModel.open(self.ref, "float32")

    def inputs(
        self, options: CriterionOptions, unit: PruneUnit, *, protected: tuple[int, ...] = (), num_removed: int = 0
    ) -> Inputs:
        """What a criterion measures itself on."""
        return Inputs(
            streamed=self.streamed(), tokens=self.tokens, options=options, unit=unit, protected=protected,
            num_removed=num_removed, memory_gib=None,
        )  # fmt: skip

    @torch.no_grad()
    def losses(self) -> torch.Tensor:
        """Mean loss of each sequence by the model's own forward pass, in nats per prediction."""
        logits = self.model(input_ids=self.tokens, use_cache=False).logits[:, :-1].float()
        return F.cross_entropy(logits.transpose(1, 2), self.tokens[:, 1:], reduction="none").mean(dim=1)


def try_scoring(toy: Toy, criteria: Iterable[str]) -> None:
    """Walk two sequences through the blocks, and compare the losses; try what criteria measure for themselves.

    Raises:
        BadInputError: naming the family.
    """
    config, rows = toy.config, {name: CRITERIA[name] for name in criteria if CRITERIA[name].reads_text}
    statistics = {NLL, *(row.statistic for row in rows.values() if row.statistic and row.is_walked)}
    without = ", ".join(name for name, row in CRITERIA.items() if not row.reads_text)
    with _trying(config, "walked block by block", advice=f"the criteria {without} do without a walk"):
        check_head(toy.model)
        if rows:
            streamed = toy.streamed()
            found = walk_statistics(streamed, toy.tokens, walked(statistics), memory_gib=None, candidates=(0,))
            _compare(torch.from_numpy(found[NLL][:, 0]), toy.losses().double(), "the walk gives another loss")
        for name, row in rows.items():
            if not row.is_walked:
                others = tuple(range(1, toy.ref.num_blocks))
                MEASUREMENTS[row.statistic or name](toy.inputs(row.options(), "block", protected=others, num_removed=1))


def try_training(toy: Toy, *, lora: LoraOptions | None, isolate_documents: bool) -> None:
    """A forward and a backward pass, adapters where there will be some, documents that stay apart where they must.

    Raises:
        BadInputError: naming the family, and the field where there is one.
    """
    config, labels = toy.config, next_token_labels(toy.tokens)
    with _trying(config, "trained"):
        check_head(toy.model)
        loss = training_loss(toy.model, toy.tokens, labels)
        loss.backward()
        _compare(loss.detach(), toy.losses().sum() * (labels != IGNORE)[0].sum(), "training starts at another loss")
        toy.model.zero_grad(set_to_none=True)
    if lora is not None:
        with _trying(config, "given adapters", field="retraining.methods: lora"):
            _try_adapters(toy, lora)
    if isolate_documents:
        choose_isolation(config)


def try_sublayers(toy: Toy) -> None:
    """Score one sub-layer of each kind, and try a plan without them.

    Raises:
        BadInputError: naming the family.
    """
    last = toy.ref.num_blocks - 1
    removed = SublayersTransform.without([(0, "attention"), (last, "mlp")])
    try_plan(toy.config, toy, (removed,), **OF_UNITS)
    with _trying(toy.config, "scored by sub-layers", **OF_UNITS):
        streamed = toy.streamed()
        walk_statistics(streamed, toy.tokens, [NLL], unit="sublayer", memory_gib=None, candidates=(0, 2 * last + 1))


def try_widths(toy: Toy, entry: WidthPruning) -> None:
    """Measure what criteria of widths are reduced from, try a plan of half the channels, and compensate it.

    Raises:
        BadInputError: naming the family.
    """
    widths = widths_of(toy.config)
    half = {block: range(widths.channels // 2) for block in range(toy.ref.num_blocks)}
    plan = WidthsTransform.keeping(num_groups=widths.groups, num_channels=widths.channels, channels=half)
    try_plan(toy.config, toy, (plan,), **OF_UNITS)
    with _trying(toy.config, "scored by heads and channels", **OF_UNITS):
        for name in entry.criteria:
            if (measured := entry.rows[name].statistic) is not None:
                MEASUREMENTS[measured](toy.inputs(entry.options(name), "width"))
        if entry.compensates:
            narrowed = toy.ref.view((plan,))
            projections = Projections.of(narrowed, refits=entry.refit is not None, bias=entry.bias)
            streamed = toy.streamed()
            list(compensated(streamed, toy.tokens, projections, entry.refit, memory_gib=None, chosen=Counter()))


def try_weights(toy: Toy, entry: WeightPruning) -> None:
    """Prune single weights of the toy by each criterion.

    Raises:
        BadInputError: naming the family.
    """
    pattern = _toy_pattern(entry.pattern, toy)
    for name in entry.criteria:
        recipe = Recipe.of(entry, name, pattern)
        with _trying(toy.config, "pruned weight by weight", **OF_UNITS):
            tokens, streamed = toy.tokens if recipe.reads_text else None, toy.streamed()
            model = DenseModel(
                ref=toy.ref, streamed=streamed, tokens=tokens, sparsity=pattern.sparsity, memory_gib=None,
            )  # fmt: skip
            shares = shares_of_blocks(model, recipe.allocation)
            list(pruned_blocks(streamed, tokens, recipe, shares, memory_gib=None))


def _toy_pattern(name: str, toy: Toy) -> Pattern:
    """The pattern, or one of smaller groups where a toy's layers make no whole ones."""
    pattern = parse_pattern(name, 0.5)
    inputs = {size for block in find_blocks(toy.model) for size in linear_inputs(block).values()}
    fits = pattern.of is None or not any(size % pattern.of for size in inputs)
    return pattern if fits else parse_pattern("1:2")


def try_export(toy: Toy) -> None:
    """Export, which reloads, compares and generates with the cache; compare what was exported with the toy itself.

    Raises:
        BadInputError: naming the family.
    """
    with _trying(toy.config, "exported"), torch.no_grad():
        directory = toy.directory / "exported"
        export_view(toy.ref, directory, "float32")
        exported = load_model(replace(toy.ref, url=str(directory)), "float32")
        tokens = probe_tokens(toy.model.config.vocab_size)
        found, wanted = (model(input_ids=tokens, use_cache=False).logits for model in (exported, toy.model))
        if not torch.equal(found, wanted):
            raise ArithmeticError(f"what was exported gives other logits, by {(found - wanted).abs().max():.3g}")


def try_plans(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, plans: Iterable[Sequence[Transform]]
) -> None:
    """Try the transforms of each plan; raises as `try_plan`, one line for each fault."""
    faults = Faults()
    with Toy(config, tokenizer) as toy:
        for transforms in plans:
            with faults.gather():
                try_plan(config, toy, transforms)
    faults.raise_any()


def try_plan(
    config: PretrainedConfig,
    toy: Toy,
    transforms: Sequence[Transform],
    *,
    field: str = "model.path",
    advice: str = "choose another ratio or criterion",
) -> None:
    """Check that the architecture can be changed so. Load the toy's view, compare it with the toy that does the same in
    another way, and generate with the cache.

    Raises:
        BadInputError: naming the family.
    """
    num_blocks = toy.ref.num_blocks
    what = " ".join(("used", *(transform.describe(num_blocks) for transform in transforms)))
    with _trying(toy.config, what, field=field, advice=advice):
        check_transforms(config, transforms)
        transforms = [KINDS[transform.kind].of_toy(toy.config, transform) for transform in transforms]
        view = load_model(toy.ref.view(transforms), "float32")
        check_head(view)
        with torch.no_grad(), ExitStack() as imitations:
            for transform in transforms:
                imitations.enter_context(KINDS[transform.kind].imitate(toy.model, transform, toy.tokens))
            imitated = toy.model(input_ids=toy.tokens, use_cache=False).logits
        with torch.no_grad():
            found = view(input_ids=toy.tokens, use_cache=False).logits
            _compare(found, imitated, "what is left computes something else without it")
            if any(KINDS[transform.kind].change for transform in transforms):
                _compare(_with_cache(view, toy.tokens), found, "the KV cache changes it")
        check_generation(view)


def _with_cache(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of `tokens`, [batch, seq], of which the second half comes one by one behind a KV cache."""
    start = tokens.shape[1] // 2
    outputs = [model(input_ids=tokens[:, :start], use_cache=True)]
    for place in range(start, tokens.shape[1]):
        cache = outputs[-1].past_key_values
        outputs.append(model(input_ids=tokens[:, place : place + 1], past_key_values=cache, use_cache=True))
    return torch.cat([output.logits for output in outputs], dim=1)


@contextlib.contextmanager
def _trying(
    config: PretrainedConfig,
    what: str,
    *,
    field: str = "model.path",
    advice: str = "give a model of another family",
) -> Iterator[None]:
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:  # whatever a family that nobody tried does
        raise BadInputError(
            f"{field}: {config.model_type} models cannot be {what} ({brief(error)}); {advice}"
        ) from error


def _try_adapters(toy: Toy, options: LoraOptions) -> None:
    """New adapters change nothing; trained ones give the same whether they stand beside a layer, are merged into it, or
    are saved and read by peft."""
    adapted = empty_model(toy.config)
    inject_adapters(adapted, options)
    fill_shards(adapted, toy.ref, device="cpu", initialise=lambda name, shape: initial_adapter(name, shape, 0))
    adapted.eval()
    check_neutral(adapted)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if is_adapter(name):
                weight.normal_(generator=generator)
        merged = empty_model(toy.config)
        merged.load_state_dict(dict(gathered(adapted, tuple(merged.state_dict()))), assign=True)
        for name, layer in adapted_layers(adapted).items():  # one by one: the others would hide a small one
            inputs = torch.randn((1, 4, int(layer.in_features)), generator=generator)  # type: ignore[arg-type]
            _compare(merged.get_submodule(name)(inputs), layer(inputs), f"the merged {name} differs from its adapter")
        weights = gathered_adapter(adapted)
        save_adapter(weights, options, toy.directory / "adapter", base="toy")
        reloaded = verify_adapter(load_model(toy.ref, "float32"), weights, toy.directory / "adapter")
        for name, layer in adapted_layers(reloaded).items():
            own = adapted.get_submodule(name.removeprefix("base_model.model."))
            inputs = torch.randn((1, 4, int(own.in_features)), generator=generator)
            _compare(layer(inputs), own(inputs), f"peft computes {name} in another way")


def _compare(found: torch.Tensor, wanted: torch.Tensor, fault: str) -> None:
    difference = (found - wanted).abs().max()
    if not difference <= TOLERANCE * wanted.abs().max().clamp(min=1):
        raise ArithmeticError(f"{fault}, by {difference:.3g} of {wanted.abs().max():.3g}")
