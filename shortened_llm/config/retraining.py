"""The section `retraining`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from shortened_llm.config.base import BY_RATIO, TOTAL, Runtime, Tokens, one_of, with_options
from shortened_llm.config.text import InstructionsConfig, TrainingSource
from shortened_llm.fields import Axes, Searched, Section, Several, axes, points
from shortened_llm.methods import METHODS
from shortened_llm.methods.method import Chain, Method, OptimizerOptions, Run, corpus_steps
from shortened_llm.records import LoraOptions

MethodName = Annotated[str, one_of(METHODS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Retraining(Section):
    """How a pruned model recovers."""

    preset: Literal["paper", "short"] = "paper"
    """Defaults of all methods. paper: as published, where it is; short: for budgets below a million tokens, with higher
    learning rates and a longer warm-up."""
    methods: Several[MethodName] = Field(
        ("cpt",),
        min_length=1,
        description="; ".join(f"{name}: {row.summary}" for name, row in METHODS.items()) + ". An axis of the search.",
    )
    data: Several[TrainingSource] = ()
    """Text to train on: one source, or a list whose sequences are mixed. Methods that train on text need it."""
    instructions: InstructionsConfig | None = None
    """Instruction data, for lora.train_on."""
    corpus_tokens: Tokens | None = None
    """Tokens of the corpus that are packed, at most; the largest budget unless given. Experiments see the same order of
    sequences, and a longer run can continue a shorter one, only where it is the same."""
    tokens: Annotated[
        Annotated[Tokens, Tag(TOTAL)] | Annotated[dict[Annotated[float, Field(ge=0, lt=1)], Tokens], Tag(BY_RATIO)],
        Discriminator(lambda value: BY_RATIO if isinstance(value, Mapping) else TOTAL),
    ] | None = None  # fmt: skip
    """Training budget of a trial on `data` (tokens), or one for each of search.ratios: {0.2: 20_000, 0.4: 40_000}.
    Methods that train on text need it."""
    sequence_length: int = Field(2048, ge=2)
    """Length of a training sequence (tokens). Documents are packed, an end-of-text token behind each."""
    isolate_documents: bool = False
    """Packed documents do not attend to one another."""
    global_batch_size: int = Field(512, ge=1)
    """Sequences per optimiser step, over all workers."""
    micro_batch_size: Annotated[int, Runtime] = Field(4, ge=1)
    """Sequences per worker and forward pass. No result depends on it, beyond rounding, but for dropout's masks."""
    seed: Annotated[Several[Seed], Searched] = Field((0,), min_length=1)
    """Order of the training sequences, adapters' first weights and dropout; a list is an axis of the search."""
    validation_sequences: int = Field(16, ge=0)
    """Sequences of the selection texts whose loss is measured with each checkpoint and at the end (count)."""
    checkpoint_tokens: Annotated[Tokens | None, Runtime] = None
    """Distance between checkpoints (tokens); a third of the budget unless given. At most this much work is lost."""
    keep_stable_checkpoint: Annotated[bool, Runtime] = False
    """With wsd: keep the weights and optimiser of the moment before the decay, 12 bytes for each trained parameter; a
    run with more tokens continues from there."""
    max_skipped_steps: Annotated[int, Runtime] = Field(10, ge=1)
    """A step whose loss or gradient is not finite is skipped; after this many in a row the trial fails (count)."""
    activation_checkpointing: Annotated[bool | Annotated[float, Field(gt=0, lt=1)], Runtime] = False
    """Recompute activations in the backward pass to save memory: of all blocks, or of a share of them, such as 0.5."""
    compile: Annotated[bool | None, Runtime] = None
    """Compile each block with torch.compile; on GPUs alone unless given, where it trained 1.2 times as fast."""
    cpu_offload: Annotated[bool, Runtime] = False
    """Keep parameters and optimiser state in CPU memory between uses; for GPUs."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        for name, row in METHODS.items():
            defaults, given = row.presets.get(str(values.get("preset")), {}), values.get(name, {})
            if defaults and isinstance(given, Mapping):
                filled[name] = {**defaults, **given}
        return filled

    def options(self, method: str) -> Any:
        """The options of a method: what the user set, and the defaults of the rest."""
        return getattr(self, method)

    def chains(self, method: str) -> tuple[Chain, ...]:
        """The chains of training runs that a method stands for."""
        options = {name: self.options(name) for name, row in METHODS.items() if row.options}
        return tuple(METHODS[method].chains(options))

    def axes(self, method: str) -> Axes:
        """What a search may choose for a method, by field: `seed`, `lora.rank`; nothing where nothing is trained."""
        trained = dict.fromkeys(run.method for chain in self.chains(method) for run in chain)
        of_runs = {f"{name}.{field}": axis for name in trained for field, axis in axes(self.options(name)).items()}
        return axes(self) | of_runs if trained else {}

    def at(self, method: str, point: Mapping[str, Any]) -> "_Retraining":
        """The section with this method alone, and with the value that `point` has for each of its axes."""
        changed: dict[str, Any] = {"methods": (method,)}
        for path, value in point.items():
            section, _, field = path.rpartition(".")
            if section:
                options = changed.get(section, self.options(section))
                changed[section] = options.model_copy(update={field: (value,)})
            else:
                changed[field] = (value,)
        return self.model_copy(update=changed)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step on the corpus."""
        return self.global_batch_size * self.sequence_length

    @property
    def budgets(self) -> tuple[int, ...]:
        """Distinct training budgets (tokens), ascending; 0 where none is given, as nothing trains on `data`."""
        return tuple(sorted(set(self.tokens.values()))) if isinstance(self.tokens, dict) else (self.tokens or 0,)

    def budget(self, ratio: float) -> int:
        """Training budget (tokens) at a ratio of the search."""
        return self.tokens[ratio] if isinstance(self.tokens, dict) else self.tokens or 0

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run of every method, one for each kind of data that it trains on."""
        return tuple(run for method in self.methods for chain in self.chains(method) for run in chain)

    @property
    def uses_corpus(self) -> bool:
        """Whether any method reads `data`."""
        return any(run.train_on == "corpus" for run in self.runs)

    @property
    def uses_instructions(self) -> bool:
        """Whether any method reads `instructions`."""
        return any(run.train_on == "instructions" for run in self.runs)

    @property
    def adapters(self) -> tuple[LoraOptions, ...]:
        """The adapters that methods train, with the first rank of several."""
        rows = {run.method: METHODS[run.method].adapters for run in self.runs}
        return tuple(
            adapters(self.at(name, next(points(self.axes(name)))).options(name))
            for name, adapters in rows.items()
            if adapters
        )

    @property
    def draws_weights(self) -> bool:
        """Whether any method begins with random weights."""
        return any(METHODS[run.method].from_random for run in self.runs)

    def has_rounds(self, method: str) -> bool:
        """Whether a method trains the weights that it is given, so that they tell what may go next."""
        return all(chain and not any(METHODS[run.method].from_random for run in chain) for chain in self.chains(method))

    def rounds(self, method: str, asked: tuple[int, ...]) -> tuple[int, ...]:
        """The numbers of rounds that a method is tried in."""
        return asked if self.has_rounds(method) else (1,)

    @property
    def drops_out(self) -> bool:
        """Whether any method trains with a dropout."""
        return any(adapters.dropout > 0 for adapters in self.adapters)

    @model_validator(mode="after")
    def _corpus_is_given(self) -> "_Retraining":
        method = next((run.method for run in self.runs if run.train_on == "corpus"), None)
        if method and not self.data:
            raise ValueError(
                f"{method} trains on text, but data is not given; name a text, such as {{path: my-text.jsonl}}, or "
                "choose methods [none]"
            )
        if method and self.tokens is None:
            raise ValueError(f"{method} trains on text, but tokens is not given; give a budget, such as 10M")
        return self

    @model_validator(mode="after")
    def _budget_covers_a_step(self) -> "_Retraining":
        for budget in self.budgets if self.uses_corpus else ():
            if budget < self.tokens_per_step:
                raise ValueError(
                    f"tokens is {budget:,}, but one optimiser step takes {self.tokens_per_step:,} "
                    f"(global_batch_size {self.global_batch_size} x sequence_length {self.sequence_length})"
                )
            steps = budget // self.tokens_per_step
            for method, chain in ((name, chain) for name in self.methods for chain in self.chains(name)):
                for run, own in zip(chain, corpus_steps(chain, steps), strict=True):
                    if run.train_on == "corpus" and not own:
                        raise ValueError(
                            f"{method}: its {run.method} run has a share of {run.share:g}, none of {steps} optimiser "
                            "steps; raise tokens or change the share"
                        )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> "_Retraining":
        for name in METHODS:
            recipe = getattr(self, name, None)
            if (
                isinstance(recipe, OptimizerOptions) and recipe.schedule == "wsd" and recipe.warmup_steps is None
                and recipe.warmup_ratio + recipe.decay_ratio > 1 + 1e-9
            ):  # fmt: skip
                raise ValueError(
                    f"{name}: warmup_ratio {recipe.warmup_ratio:g} and decay_ratio {recipe.decay_ratio:g} are more "
                    "than the whole run together"
                )
        return self

    @model_validator(mode="after")
    def _all_sources_have_weights(self) -> "_Retraining":
        without = [index for index, source in enumerate(self.data) if source.weight is None]
        if 0 < len(without) < len(self.data):
            index = without[0]
            raise ValueError(
                f"data.{index}.weight: {self.data[index].path!r} has none, but other sources have; give all of them a "
                "weight, or none"
            )
        return self

    @model_validator(mode="after")
    def _instructions_are_given(self) -> "_Retraining":
        if self.uses_instructions and self.instructions is None:
            (name, *_) = [run.method for run in self.runs if run.train_on == "instructions"]
            raise ValueError(
                f"{name} trains on instructions, but instructions is not given; name instruction data, such as "
                "{path: alpaca.json}"
            )
        return self


def retraining_section(methods: Mapping[str, Method]) -> Any:
    """The section `retraining` with a section for the options of each method."""
    options = {name: row.options for name, row in methods.items() if row.options is not None}
    return with_options(_Retraining, "RetrainingConfig", options)


if TYPE_CHECKING:
    RetrainingConfig = _Retraining
else:
    RetrainingConfig = retraining_section(METHODS)

NO_RETRAINING = RetrainingConfig(methods=("none",))
"""What the absence of the section means: nothing is trained."""
