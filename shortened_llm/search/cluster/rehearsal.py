"""A short trial of each method on the resources of the real ones, before money is spent on these."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shortened_llm.errors import last_line
from shortened_llm.evaluation.units import TaskUnit, TextUnit, Unit, score_identity
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.records import TrialSpec
from shortened_llm.retraining.interruption import STEPS
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.search.cluster.train_callbacks import StartCallback
from shortened_llm.search.planned import installed_versions
from shortened_llm.search.prepare import Prepared
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.trial import TrialContext, train_runs
from shortened_llm.storage.layout import EVALUATIONS, REHEARSAL, REHEARSED
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete, join

SEGMENTS = 2
"""Segments of each selection text, and items of each task, that are scored."""


class RehearsalFailedError(RuntimeError):
    """Nothing was trained but the rehearsal, whose cause this names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """A method's rehearsal that went well."""

    method: str


def rehearse(prepared: Prepared, context: TrialContext, progress: Progress) -> None:
    """Load, step, checkpoint, lose the workers, restore, export, reload and evaluate the largest candidate by each
    method. Of what went well only a record stays, by which it is not done again.

    Raises:
        RehearsalFailedError: with the cause.
    """
    own = replace(context.experiment, url=join(context.experiment.url, REHEARSAL))
    for spec in _short(prepared.space, prepared.space.trials(prepared.candidates.plans)):
        known = {"trial": prepared.space.trial_identity(spec), "resources": context.resources,
                 "versions": installed_versions()}  # fmt: skip
        if context.experiment.read(REHEARSED, fingerprint(known), Rehearsed):
            continue
        delete(own.url)  # what a driver left that was stopped meanwhile
        try:
            with progress.under_way():
                _rehearse(spec, context, own, progress)
        except Exception as error:
            raise RehearsalFailedError(
                f"the rehearsal of {spec.method} failed, so that no trial was begun ({last_line(error)}); "
                "search.rehearsal: false goes on without it"
            ) from error
        finally:
            delete(own.url)
        record = Rehearsed(method=spec.method)
        context.experiment.write(REHEARSED, fingerprint(known), record, identity=known, parents=())


def _short(space: SearchSpace, specs: Iterable[TrialSpec]) -> Iterator[TrialSpec]:
    """The trial of each method that trains the largest model, in a few steps; where there are some in rounds, one of
    these."""
    largest: dict[str, TrialSpec] = {}
    for spec in (spec for spec in specs if spec.recipes):
        known = largest.setdefault(spec.method, spec)
        if _largest_first(spec) > _largest_first(known):
            largest[spec.method] = spec
    for spec in largest.values():
        recipes = (replace(recipe, num_steps=STEPS, warmup_steps=0, decay_steps=1) for recipe in spec.recipes)
        yield replace(spec, recipes=tuple(recipes))


def _largest_first(spec: TrialSpec) -> tuple[int, bool]:
    return spec.plan.size.parameters, spec.rounds is not None


def _rehearse(spec: TrialSpec, context: TrialContext, own: Store, progress: Progress) -> None:
    LOGGER.info("%s: %d steps, with the workers lost once", spec.method, STEPS)
    often = context.space.retraining.model_copy(update={"checkpoint_tokens": 1, "keep_stable_checkpoint": False})
    space = replace(context.space, retraining=often)
    trial = replace(
        context, space=space, store=own, experiment=own, is_rehearsal=True, max_failures=max(1, context.max_failures)
    )
    callbacks = [StartCallback(context.resources, progress, is_trial=False)]
    runs = train_runs(spec, trial, train_callbacks=callbacks, progress=progress)
    model, units = runs[-1].model, tuple(map(_beginning, space.selection))
    LOGGER.info("evaluating")
    scores = context.pool.evaluate(model, units, progress)
    for unit in units:  # their model goes
        context.store.remove(EVALUATIONS, fingerprint(score_identity(model, unit, space.dtype)))
    if scores.missing:
        raise RuntimeError(f"{scores.missing[0].name} is missing: {scores.missing[0].cause}")


def _beginning(unit: Unit) -> Unit:
    """A text's first segments, or a task's first items; what is neither stays whole."""
    if isinstance(unit, TaskUnit):
        return replace(unit, limit=min(SEGMENTS, unit.limit or SEGMENTS))
    if not isinstance(unit, TextUnit):
        return unit
    most = SEGMENTS * unit.source.segment_length
    source = unit.source.model_copy(update={"max_tokens": min(most, unit.source.max_tokens or most)})
    return replace(unit, source=source)
