"""What trials cost before they have run: arithmetic on shapes, recipes and the speed of what has run.

FLOPs = tokens x FLOPs per token, which `retraining.flops` counts weight by weight. With N weights that is about 6 N
where all are trained (Kaplan et al., arXiv 2001.08361), 4 N and those of the adapters for LoRA, 2 N more for a teacher,
and attention (PaLM, arXiv 2204.02311, appendix B). Seconds = FLOPs / (accelerators x FLOP/s of each). Where no run has
ended yet, the FLOP/s are a share of the declared or known peak.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.models.build import empty_model
from shortened_llm.models.view import transformed_model
from shortened_llm.records import Recipe, Transform, TrialResult, TrialSpec
from shortened_llm.retraining.flops import training_flops
from shortened_llm.retraining.job import Run
from shortened_llm.retraining.prepare import freeze, prepare_method
from shortened_llm.retraining.schedule import stable_end

ASSUMED_UTILISATION = 0.4
"""Share of the peak before anything is measured: 40 to 50 % were measured on one H200 (retraining/README.md)."""
ANY = ""
"""Stands for every method among speeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShape:
    """What the cost of a training run follows from, beside its length."""

    flops_per_token: float
    """Forward and backward, teacher included."""
    trained_parameters: int


class Shapes:
    """The shapes of training runs on views of one dense model, each worked out once, without weights."""

    def __init__(self, config: PretrainedConfig, dtype: str) -> None:
        """`config`: of the dense model; `dtype`: to compute in."""
        self._config, self._dtype = config, dtype
        self._known: dict[object, RunShape] = {}

    def student(self, transforms: Sequence[Transform], recipe: Recipe) -> PreTrainedModel:
        """A view as the recipe trains it, without weights: what is frozen lies in the compute type."""
        model = transformed_model(self._config, transforms)
        prepare_method(model, recipe, self._dtype)
        return model

    @cached_property
    def dense(self) -> PreTrainedModel:
        """The dense model, without weights."""
        return empty_model(self._config)

    def teacher(self) -> PreTrainedModel:
        """The dense model as a distillation follows it, without weights."""
        model = empty_model(self._config)
        freeze(model, self._dtype)
        return model

    def of(self, transforms: Sequence[Transform], recipe: Recipe) -> RunShape:
        """The shape of a run; its length, learning rate and seed do not matter."""
        key = (tuple(transforms), recipe.method, recipe.sequence_length, recipe.lora, repr(recipe.options))
        if key not in self._known:
            model = self.student(transforms, recipe)
            flops = training_flops(model, recipe.sequence_length)
            flops += training_flops(self.teacher(), recipe.sequence_length) if recipe.distill else 0.0
            trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            self._known[key] = RunShape(flops_per_token=flops, trained_parameters=trained)
        return self._known[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Training that is still to be done."""

    method: str
    tokens: int
    """Padding included."""
    flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a trial will cost; None: not known before a run has ended."""

    seconds: float | None
    """Wall time of its training."""
    accelerator_hours: float | None


def trial_work(
    spec: TrialSpec,
    runs: Sequence[Run],
    shapes: Shapes,
    *,
    made: Collection[str],
    begun: Mapping[str, Collection[int]],
) -> tuple[Work, ...]:
    """The training that is left of a trial: neither what another made, nor what its run goes on from.

    Args:
        runs: the trial's.
        made: fingerprints of runs that are stored.
        begun: steps of kept checkpoints before the decay, by the fingerprint of what such runs share.
    """
    found = []
    for run, transforms in zip(runs, spec.shapes, strict=True):
        if run.fingerprint not in made:
            kept = begun.get(run.stable_fingerprint, ())
            first = max((step for step in kept if step <= stable_end(run.recipe)), default=0)
            found.append(run_work(run.recipe, first, shapes.of(transforms, run.recipe)))
    return tuple(found)


def run_work(recipe: Recipe, first_step: int, shape: RunShape) -> Work:
    """The steps of a run from one on."""
    tokens = (recipe.num_steps - first_step) * recipe.tokens_per_step
    return Work(method=recipe.method, tokens=tokens, flops=tokens * shape.flops_per_token)


def estimate(work: Iterable[Work], speeds: Mapping[str, float], accelerators: float) -> Estimate:
    """What work costs.

    Args:
        speeds: FLOP/s of an accelerator by method, as `measured_speeds`; that of `ANY` serves methods without one.
        accelerators: GPUs of a trial, or workers on CPU.
    """
    seconds = 0.0
    for part in work:
        speed = speeds.get(part.method, speeds.get(ANY))
        if speed is None:
            return Estimate(seconds=None, accelerator_hours=None)
        seconds += part.flops / speed
    return Estimate(seconds=seconds / accelerators, accelerator_hours=seconds / 3600)


def measured_speeds(trials: Iterable[tuple[TrialSpec, TrialResult]], shapes: Shapes) -> dict[str, float]:
    """FLOP/s of an accelerator over the runs of each method that have ended, and over all of them as `ANY`:
    checkpoints, validation and compilation take from it."""
    flops: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for spec, result in trials:
        for recipe, transforms, run in zip(spec.recipes, spec.shapes, result.runs, strict=True):
            for method in (recipe.method, ANY):
                done = recipe.tokens * shapes.of(transforms, recipe).flops_per_token
                flops[method] = flops.get(method, 0.0) + done
                seconds[method] = seconds.get(method, 0.0) + run.accelerator_seconds
    return {method: flops[method] / spent for method, spent in seconds.items() if spent > 0}
