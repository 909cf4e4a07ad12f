"""The section `search`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shortened_llm.config.base import Runtime
from shortened_llm.config.budget import BudgetConfig
from shortened_llm.config.constraints import ConstraintsConfig
from shortened_llm.config.resources import ResourcesConfig
from shortened_llm.fields import Range, Section, Several, ValuesOrRange
from shortened_llm.records.objective import PERPLEXITY

Ratio = Annotated[float, Field(gt=0, lt=1)]


class Ratios(Range[Ratio]):
    """Every number of blocks between two ratios."""


Control = Literal["dense", "random", "scratch"]
Rounds = Annotated[int, Field(ge=1)]


class SearchSection(Section):
    """What Ray Tune tries."""

    ratios: ValuesOrRange[Ratio, Ratios] = ()
    """Fractions to remove, each rounded half up to whole blocks or sub-layers; an axis of the search. A range stands
    for every number of them in it."""
    of: Literal["blocks", "parameters", "nonzero", "bytes"] = "blocks"
    """What a ratio is a fraction of. blocks: what pruning.unit names, where all entries name the same, of single
    weights those of the blocks' linear layers; of parameters or bytes, as many of these go as come nearest to it; of
    nonzero, parameters go or become zero."""
    removed_blocks: Several[Annotated[int, Field(ge=1)]] = ()
    """Numbers of blocks to remove (count); the exact alternative to ratios."""
    controls: Several[Control] = ()
    """Comparisons that tell what pruning by scores is worth, each with continued pretraining on the same tokens.
    dense: the unpruned model; random: blocks drawn with pruning.random.seed, at every ratio; scratch: random weights in
    the shape of each ratio, trained as retraining.scratch says."""
    equal_seconds: bool = False
    """After the search, each method once more with the training time of continued pretraining instead of its tokens."""
    sampler: Literal["grid", "optuna"] = "grid"
    """grid: every combination of all axes; optuna: combinations that Optuna chooses by the results so far, from listed
    values and ranges; sizes take turns. A learning rate that is not given is then a range, for LoRA ten times higher
    than for methods that train all weights. Needs the extra optuna."""
    trials: int | None = Field(None, ge=1)
    """With optuna: combinations to try (count), at the first rung where there are rungs; controls come on top."""
    rungs: Several[Annotated[float, Field(gt=0, le=1)]] = ()
    """Shares of the token budget, ascending to 1, such as [0.1, 0.3, 1.0]: every candidate is trained on the first, and
    the best third of each target goes on to the next, with those that are not told apart from it. What was trained
    counts: a longer run goes on from before the shorter one's decay. Every trial has its whole budget unless given."""
    rounds: Several[Rounds] = (1,)
    """Numbers of rounds in which blocks go; an axis of the search. 1: all at once. 3: a third of them goes, the model
    is trained on a third of its tokens and scored anew, and so on; more accurate where much is removed."""
    metric: str = Field(PERPLEXITY, min_length=1)
    """The score by which candidates of one target are compared. perplexity: the mean of the log-perplexities of
    evaluation.selection.perplexity; a task of evaluation.selection.tasks, by the metric that the report shows, or with
    /bits_per_byte behind it by that of its gold answers, which moves where accuracy stands still; or one of
    evaluation.selection.metrics."""
    metric_mode: Literal["min", "max"] | None = None
    """Which way a measure of your own is better; needed for that, and for nothing else."""
    rehearsal: Annotated[bool | None, Runtime] = None
    """Before the first trial, three steps of each method on the real machines, once with the workers lost in between:
    load, train, checkpoint, restore, export, reload, evaluate. Where it fails, the search ends. Done where workers have
    GPUs unless given."""
    constraints: Annotated[ConstraintsConfig | None, Runtime] = None
    """What the model must meet that the report recommends, such as {max_bytes: 8_000_000_000}; none is recommended
    unless given."""
    budget: Annotated[BudgetConfig | None, Runtime] = None
    """What the search may spend at most, such as {accelerator_hours: 200}; no limit unless given."""
    max_concurrent_trials: Annotated[int, Runtime] = Field(1, ge=1)
    """Trials at a time. Set it to (GPUs for training) // (GPUs per trial)."""
    max_failures: Annotated[int, Runtime] = Field(2, ge=0)
    """Restarts of a trial's worker group, from its last checkpoint, before the trial fails (count)."""

    @model_validator(mode="after")
    def _rungs_ascend(self) -> "SearchSection":
        if self.rungs and (sorted(self.rungs) != list(self.rungs) or self.rungs[-1] != 1 or len(self.rungs) < 2):
            raise ValueError(f"rungs is {list(self.rungs)}; give ascending shares that end at 1, such as [0.1, 0.3, 1]")
        if self.rungs and self.equal_seconds:
            raise ValueError("rungs and equal_seconds are both given; trials are compared at equal tokens or seconds")
        if self.rounds != (1,) and self.equal_seconds:
            raise ValueError("rounds and equal_seconds are both given; rounds have no time to compare with")
        return self

    @model_validator(mode="after")
    def _sampler_has_trials(self) -> "SearchSection":
        if self.sampler == "optuna" and self.trials is None:
            raise ValueError("sampler is 'optuna', but trials is not given; say how many to try, such as 40")
        if self.sampler != "optuna" and self.trials is not None:
            raise ValueError(f"trials is {self.trials}, but sampler is {self.sampler!r}, which tries every combination")
        if self.sampler == "optuna" and self.equal_seconds:
            raise ValueError("equal_seconds compares every method at every rate; sampler optuna does not try them all")
        if isinstance(self.ratios, Range) and self.ratios.log is not None:
            raise ValueError("ratios.log is given, but every number of blocks between the ratios takes its turn")
        return self

    @model_validator(mode="after")
    def _asks_for_something(self) -> "SearchSection":
        if not self.rounds:
            raise ValueError("rounds lists nothing; give numbers of rounds, such as [1, 3]")
        if not self.ratios and not self.removed_blocks:
            raise ValueError("give ratios, such as [0.2, 0.4], or removed_blocks, such as [6, 12]")
        return self

    def rehearses(self, resources: ResourcesConfig) -> bool:
        """Whether the search begins with a rehearsal."""
        return resources.gpus_per_worker > 0 if self.rehearsal is None else self.rehearsal


NO_SEARCH = SearchSection.model_construct()
"""What the absence of the section means: no size is asked for. Nobody can write it, since a search that is given asks
for one."""
