"""LoRA: low-rank adapters beside frozen weights."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from shortened_llm.fields import LOG, Axis, Range, Searched, as_tuple, distinct, only
from shortened_llm.methods.method import Method, OptimizerOptions, Run, TrainOn
from shortened_llm.records import LoraOptions as Adapters

Rank = Annotated[int, Field(ge=1, le=2**16)]


class Ranks(Range[Rank]):
    """Ranks between two bounds."""


class LoraOptions(OptimizerOptions):
    """Low-rank adapters beside the linear layers of the blocks, W + alpha / rank x B A, merged into them at the end.
    Sources: Hu et al., arXiv 2106.09685; the recipe is that of Shortened LLaMA, arXiv 2402.02834."""

    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, on the adapters."""
    schedule: Literal["wsd", "cosine", "linear"] = "linear"
    """Learning rate after the warm-up: see `cpt.schedule`."""
    warmup_ratio: float = Field(0.064, ge=0, lt=1)
    """Share of the steps with a linearly rising learning rate: the paper's 100 steps of its two epochs."""
    final_learning_rate_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end / peak learning rate."""
    rank: Annotated[Axis[Rank, Ranks], LOG] = (8,)
    """Rank of each adapter; a list or a range is an axis of the search."""
    alpha: float = Field(16.0, gt=0)
    """An adapter's product is scaled by alpha / rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of an adapter's inputs that are dropped."""
    target_modules: Annotated[tuple[str, ...], BeforeValidator(as_tuple), AfterValidator(distinct)] = ()
    """Last parts of the names of linear layers that get an adapter, such as q_proj; all in the blocks unless given."""
    train_on: Annotated[tuple[TrainOn, ...], BeforeValidator(as_tuple), AfterValidator(distinct), Searched] = Field(
        ("corpus",), min_length=1
    )
    """corpus: retraining.data; instructions: retraining.instructions. A list is an axis of the search."""


def adapters(options: LoraOptions) -> Adapters:
    """The adapters that the options ask for."""
    return Adapters(
        rank=only(options.rank), alpha=options.alpha, dropout=options.dropout, target_modules=options.target_modules
    )


METHOD = Method(
    options=LoraOptions,
    summary="low-rank adapters",
    chains=lambda options: ((Run(method="lora", train_on=train_on),) for train_on in options["lora"].train_on),
    adapters=adapters,
    presets={"short": {"learning_rate": 3e-3, "warmup_ratio": 0.1, "dropout": 0.0}},
    # About ten times those of all weights: Schulman et al., LoRA Without Regret, Thinking Machines Lab, 2025.
    learning_rates=(1e-4, 1e-2),
)
