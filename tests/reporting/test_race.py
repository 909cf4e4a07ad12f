"""The race in the report: the strategy of rungs decides over planted losses, and the report must say what it did."""

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.config import ExperimentConfig
from shortened_llm.records import (
    EvalScores,
    Experiment,
    ReportedTrial,
    RetrainedModel,
    TrainingPoint,
    TrialResult,
    TrialSpec,
)
from shortened_llm.reporting.race import Race, race
from shortened_llm.reporting.rows import best_of_each_target, quoted, trial_rows
from shortened_llm.reporting.view import report_view
from shortened_llm.reporting.write import write_report
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.search.planned import planned_trials
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.strategies.rungs import propose_rungs
from shortened_llm.search.strategies.strategy import Candidates, Outcomes
from tests.reporting.experiments import by_document, experiment, plan, texts, trial
from tests.reporting.page import Page
from tests.search.test_rungs import RATES, RUNGS, candidates, loss_of, nine
from tests.search.test_space import space

__all__ = ["candidates", "nine", "space"]
Run = Callable[..., Experiment]


def trained(spec: TrialSpec, space: SearchSpace) -> RetrainedModel:
    """A run that went on from the shorter one's checkpoint before its decay, with the history of that."""
    (recipe,), (own,) = spec.recipes, space.runs(spec)
    history = tuple(
        TrainingPoint(
            step=step, tokens=step * recipe.tokens_per_step, loss=3.0, learning_rate=1e-4, tokens_per_second=100.0,
            seconds=step + (0.0 if step <= stable_end(recipe) else 0.1),
        )
        for step in range(1, recipe.num_steps + 1)
    )  # fmt: skip
    model = replace(space.dense, fingerprint=own.fingerprint)
    seconds = float(recipe.num_steps)
    return RetrainedModel(
        model=model, tokens=recipe.tokens, seconds=seconds, accelerator_seconds=seconds, history=history
    )


def planted(spec: TrialSpec) -> float:
    """E + B * D^(-1/2), where E is 3 nats for the best learning rate."""
    return loss_of(replace(spec, rung=0.0)) + 0.1 * spec.rung**-0.5


@pytest.fixture
def run(nine: SearchSpace, candidates: Candidates) -> Run:
    """A whole search over nine learning rates at one target, but for the trials that it is to leave."""

    def search(*, noise: float = 0.0, failing: float | None = None, leave: int = 0) -> Experiment:
        results: dict[str, TrialResult] = {}
        failed: set[str] = set()
        specs: dict[str, TrialSpec] = {}
        while True:
            outcomes = Outcomes(specs=tuple(specs.values()), results=results, failed=frozenset(failed))
            proposed = propose_rungs(nine, candidates, outcomes, rungs=RUNGS)
            specs |= {spec.fingerprint: spec for spec in proposed}
            waiting = [spec for spec in specs.values() if spec.fingerprint not in {*results, *failed}]
            if len(waiting) <= leave:
                break
            spec = waiting[0]
            if spec.learning_rate == failing:
                failed.add(spec.fingerprint)
                continue
            text = by_document("wiki", planted(spec), seed=int(spec.fingerprint[:6], 16), noise=noise)
            results[spec.fingerprint] = TrialResult(
                fingerprint=spec.fingerprint, model=nine.dense, runs=(trained(spec, nine),), before=EvalScores(),
                after=EvalScores(perplexity=(text,)), seconds=1.0,
            )  # fmt: skip
        trials = tuple(
            replace(
                one,
                result=results.get(one.spec.fingerprint),
                failure="out of memory" if one.spec.fingerprint in failed else None,
            )
            for one in planned_trials(tuple(specs.values()))
        )
        return replace(experiment(), trials=trials, unit_scores=(), dense_selection=EvalScores())

    return search


def raced(found: Experiment) -> Race:
    one = race(found, trial_rows(found))
    assert one is not None
    return one


def steps(found: Experiment, config: ExperimentConfig) -> float:
    per_step = config.retraining.tokens_per_step
    return raced(found).tokens / per_step


def test_each_run_counts_once_and_a_continuation_what_it_added(run: Run, tiny_config: ExperimentConfig) -> None:
    """Decays begin after 8, 24 and 80 steps; so the three rungs of a candidate cost 10, 22 and 76 steps."""
    found = run()
    came = [sum(one.spec.rung == rung for one in found.trials) for rung in RUNGS]
    assert came[0] == 9
    assert came[2] >= 1
    assert steps(found, tiny_config) == pytest.approx(10 * came[0] + 22 * came[1] + 76 * came[2])
    one = raced(found)
    assert one.grid_tokens == 9 * 100 * tiny_config.retraining.tokens_per_step
    assert one.saved == pytest.approx(1 - one.tokens / one.grid_tokens)
    assert one.is_over


def test_a_run_that_began_anew_counts_whole(run: Run, tiny_config: ExperimentConfig) -> None:
    found = run()
    before = steps(found, tiny_config)
    anew = []
    for one in found.trials:
        if one.spec.rung == 1.0:
            assert one.result is not None
            (own,) = one.result.runs
            history = tuple(replace(point, seconds=point.seconds + 0.5) for point in own.history)
            one = replace(one, result=replace(one.result, runs=(replace(own, history=history),)))
        anew.append(one)
    last = sum(one.spec.rung == 1.0 for one in found.trials)
    assert steps(replace(found, trials=tuple(anew)), tiny_config) == pytest.approx(before + 24 * last)


def test_what_was_stopped_says_why_and_what_went_on_does_not(run: Run) -> None:
    found = run(noise=0.02, failing=RATES[8])
    one, rows = raced(found), {row.number: row for row in trial_rows(found)}
    (target,) = one.targets
    last = {candidate.last.number for candidate in target.candidates}
    stopped = {number for number in last if rows[number].status == "done" and rows[number].rung < 1}
    assert set(one.reasons) == stopped
    assert len(stopped) == 9 - 1 - sum(row.rung == 1 for row in rows.values())
    for stop in target.stops:
        assert stop.behind is not None
        assert stop.kept is not None
        assert stop.behind.mean >= 0
        assert stop.kept.rung == stop.candidate.last.rung
        assert f"behind #{stop.kept.number}, the last one kept, by " in stop.reason
    assert "of the tokens; 1 failed" in target.counts
    assert {rows[number].rung for number in one.greyed} <= {0.1, 0.3}


def test_regret_is_bounded_by_what_documents_do_not_tell(run: Run) -> None:
    """A document differs by `noise` nats from model to model, which a mean over 160 of them divides by about 12."""
    clear, noisy, noisier = (raced(run(noise=noise)).targets[0] for noise in (0.0, 1.0, 3.0))
    assert clear.regret == 0
    assert "no candidate that was stopped could have been better" in clear.risk
    assert noisy.regret is not None
    assert noisier.regret is not None
    assert 0 < noisy.regret < noisier.regret < 1.96 * 3 * 2**0.5 / 8
    assert f"up to {noisy.regret:.3f} nats better" in noisy.risk


def test_a_report_is_whole_without_report_scores_of_what_was_stopped(run: Run) -> None:
    found = run(noise=0.02)
    asked = quoted(found.trials)
    assert 0 < len(asked) < len(found.trials)
    scores = EvalScores(perplexity=(by_document("wiki", 3.0, seed=1),))
    trials = [replace(one, after=scores) if one.spec.fingerprint in asked else one for one in found.trials]
    assert report_view(replace(found, trials=tuple(trials), dense_report=scores)).partial is None
    partial = report_view(replace(found, dense_report=scores)).partial
    assert partial is not None
    assert partial.statements[0].startswith(f"report scores of {len(asked)} finished trial")


def test_nobody_is_stopped_while_a_rung_is_undecided(run: Run) -> None:
    one = raced(run(leave=1))
    assert not one.is_over
    assert not any(stop.candidate.last.rung == 0.3 for stop in one.targets[0].stops)


def test_luck_at_a_low_rung_beats_no_longer_training() -> None:
    cut = plan((9, 10), ("ppl", 0.07))

    def at(rung: float, name: str, perplexity: float) -> ReportedTrial:
        one = trial(name, cut, after=texts(wiki=perplexity))
        return replace(one, spec=replace(one.spec, rung=rung))

    lucky, second, first = at(0.1, "a", 20.0), at(1.0, "b", 31.0), at(1.0, "c", 30.0)
    assert list(best_of_each_target([lucky, second, first]).values()) == [first]
    untrained = trial("d", cut, after=texts(wiki=29.0), method="none")
    untrained = replace(untrained, spec=replace(untrained.spec, recipes=(), rung=0.1))
    assert list(best_of_each_target([lucky, second, untrained]).values()) == [untrained]
    (size,) = report_view(replace(experiment(), trials=(lucky, second, untrained))).sizes
    assert size.choice == "Best of 2 finished trials."


def test_the_page_has_a_row_for_each_candidate_and_its_rungs_one_click_away(run: Run, tmp_path: Path) -> None:
    found = run(noise=0.02)
    view = report_view(found)
    page = Page(write_report(found, tmp_path).read_text(encoding="utf-8"))
    assert view.race is not None
    assert len(view.last_rows) == 9
    assert len(view.lower_rows) == len(found.trials) - 9
    heading = next(cells for cells in page.rows.values() if cells[:2] == ["criterion and ratio", "#"])
    place = heading.index("rung")
    for row in view.rows:
        cells = page.rows[f"trial-{row.number}"]
        assert len(cells) == len(heading)
        assert cells[place].replace("\N{NO-BREAK SPACE}", " ").startswith(f"{100 * row.rung:g} %")
        assert all(reason in cells[-2] for reason in view.race.reasons.get(row.number, ()))
    classes = {attributes.get("id"): attributes.get("class") for tag, attributes in page.tags if tag == "tr"}
    assert {f"trial-{number}" for number in view.greyed} == {name for name, of in classes.items() if of == "control"}
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "the last one kept" in markdown
    assert "of the tokens were saved" in markdown
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert sorted(row["rung"] for row in table) == sorted(str(one.spec.rung) for one in found.trials)
    assert len({row["candidate"] for row in table}) == 9


def test_curves_are_fitted_from_three_rungs_on_and_what_lies_beyond_is_marked(run: Run, tmp_path: Path) -> None:
    found = run(noise=0.02)
    dense = EvalScores(perplexity=(by_document("wiki", 2.0, seed=1),))
    view = report_view(replace(found, dense_selection=dense))
    (recovery,) = view.recoveries
    last = [row for row in view.last_rows if row.rung == 1]
    assert {line.row.number for line in recovery.lines} == {row.number for row in last}
    assert recovery.num_short == 9 - len(last)
    best = next(line for line in recovery.lines if line.row.is_best)
    own, further = best.reaches
    assert (best.law.floor, best.law.exponent) == pytest.approx((3.0, 0.5), rel=1e-2)
    assert own.tokens == pytest.approx(best.row.tokens, rel=1e-2)
    assert not own.is_extrapolated
    assert further.tokens == math.inf
    assert further.in_tokens.startswith("never")
    assert further.is_extrapolated
    page = Page(write_report(replace(found, dense_selection=dense), tmp_path).read_text(encoding="utf-8"))
    assert f"Loss against tokens, {recovery.race.name}" in [a.get("aria-label") for t, a in page.tags if t == "svg"]
    assert "extrapolated" in "".join(cell for cells in page.rows.values() for cell in cells)
    assert f"no curve is fitted to {recovery.num_short} of 9 candidates" in page.text
