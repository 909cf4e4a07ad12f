"""Which trial comes next: asked whenever there is room for one, answered from what is stored."""

from collections.abc import Callable, Iterable, Sequence

from shortened_llm.records import RetrainedModel, TrialFailure, TrialResult, TrialSpec
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.strategies.strategy import Candidates, Outcomes, Strategy
from shortened_llm.search.trial import read_result
from shortened_llm.storage.layout import RETRAINED
from shortened_llm.storage.store import Store

Refuses = Callable[[TrialSpec, Sequence[TrialSpec], Outcomes], str | None]
"""Why a trial may not begin beside those that run; None where it may."""
LOST = "its process was lost, more often than it was started again"


class Proposals:
    """The trials that strategies propose, one after another. A strategy proposes once those before it have no more.

    Nothing is remembered but what records say: a search that runs again asks the same questions and finds the same
    answers, so that it goes on where it was.
    """

    def __init__(
        self,
        strategies: Sequence[Strategy],
        space: SearchSpace,
        candidates: Candidates,
        store: Store,
        *,
        on_proposed: Callable[["Proposals"], None],
        refuses: Refuses = lambda spec, running, outcomes: None,
    ) -> None:
        """`on_proposed` is called whenever there are new trials, before any of these begins. `refuses` is asked before
        each; a trial that it refuses while others run is asked for again when one of these has ended."""
        self._strategies, self._space, self._candidates, self._store = list(strategies), space, candidates, store
        self._on_proposed, self._refuses = on_proposed, refuses
        self.specs: tuple[TrialSpec, ...] = ()
        """Every trial so far; a control that equals a candidate stands beside it, and shares its result."""
        self.failures: dict[str, TrialFailure] = {}
        """By the trial's fingerprint."""
        self.left_out: dict[str, str] = {}
        """Why trials were refused when they could have begun last, by their fingerprint."""
        self._results: dict[str, TrialResult] = {}
        self._running: dict[str, TrialSpec] = {}
        self._known_runs: dict[str, tuple[str, ...]] = {}
        self.titles: dict[str, str] = {}
        """Number and name of each trial, as log lines show it."""

    def next(self) -> TrialSpec | None:
        """The next trial to run; None while those that run decide what comes next, and when nothing is left."""
        while self._strategies:
            num_failed = len(self.failures)
            has_new = self._ask(self._strategies[0])
            self.left_out = {}
            for spec in self._open():
                if self._fails_with_another(spec) or self._shares_a_run(spec, self._running.values()):
                    continue
                reason = self._refuses(spec, tuple(self._running.values()), self.outcomes)
                if reason is None:
                    self._running[spec.fingerprint] = spec
                    return spec
                if self._running:
                    return None  # these may cost less than is known now
                self.left_out[spec.fingerprint] = reason
            if self._running:
                return None
            # What was done before, or failed with another trial, may lead to further proposals.
            if not has_new and len(self.failures) == num_failed:
                self._strategies.pop(0)
        return None

    @property
    def outcomes(self) -> Outcomes:
        """What is known of the trials so far."""
        return Outcomes(specs=self.specs, results=self._results, failed=frozenset(self.failures))

    @property
    def is_finished(self) -> bool:
        """Whether no trial is left that may begin or has not ended."""
        return not self._strategies and not self._running

    def result(self, spec: TrialSpec) -> TrialResult | None:
        """The trial's result, where it has one."""
        return self._results.get(spec.fingerprint)

    def end(self, fingerprint: str, failure: TrialFailure | None) -> None:
        """Take note that a trial has ended. A result of before with scores missing is none where it failed now."""
        spec = self._running.pop(fingerprint)
        result = read_result(self._store, spec)
        if result and (result.is_whole or failure is None):
            self._results[fingerprint] = result
        else:
            self.failures[fingerprint] = failure or TrialFailure(fingerprint=fingerprint, cause=LOST)

    def _ask(self, strategy: Strategy) -> bool:
        """Take what the strategy proposes; returns whether any of it is new."""
        known = {spec.row for spec in self.specs}
        proposed = strategy(self._space, self._candidates, self.outcomes)
        new = [spec for spec in proposed if spec.row not in known]
        if not new:
            return False
        first, total = len(self.specs) + 1, len(self.specs) + len(new)
        self.specs = (*self.specs, *new)
        for number, spec in enumerate(new, start=first):
            self.titles.setdefault(spec.fingerprint, f"{number}/{total} {spec.name}")
            if (result := read_result(self._store, spec)) and result.is_whole:
                self._results[spec.fingerprint] = result
        self._on_proposed(self)
        return True

    def _open(self) -> list[TrialSpec]:
        begun = {*self._results, *self.failures, *self._running}
        left = [spec for spec in self.specs if spec.fingerprint not in begun]
        return sorted(left, key=lambda spec: spec.control is not None)  # what a budget has left after candidates

    def _shares_a_run(self, spec: TrialSpec, others: Iterable[TrialSpec]) -> bool:
        """Whether another trial makes a training run of this one: no two make it at a time, so it is made once."""
        made = {run for other in others for run in self._runs(other)}
        return not made.isdisjoint(self._runs(spec))

    def _fails_with_another(self, spec: TrialSpec) -> bool:
        """Whether a training run of this trial failed in another; then it fails too, without being tried again."""
        tried = {run for one in self.specs if one.fingerprint in self.failures for run in self._runs(one)}
        for run, recipe in zip(self._runs(spec), spec.recipes, strict=True):
            if run in tried and self._store.read(RETRAINED, run, RetrainedModel) is None:
                cause = f"the {recipe.method} run that it begins with failed in another trial"
                self.failures[spec.fingerprint] = TrialFailure(fingerprint=spec.fingerprint, cause=cause)
                return True
        return False

    def _runs(self, spec: TrialSpec) -> tuple[str, ...]:
        """The fingerprints of a trial's training runs."""
        if spec.fingerprint not in self._known_runs:
            self._known_runs[spec.fingerprint] = tuple(run.fingerprint for run in self._space.runs(spec))
        return self._known_runs[spec.fingerprint]
