"""Notes on single scores: shown once, where the protocol stands, with the models that they are about."""

import json
import math
from dataclasses import replace
from pathlib import Path

from shortened_llm.records import EvalScores, Experiment, from_json
from shortened_llm.reporting.view import report_view
from shortened_llm.reporting.write import write_report
from tests.reporting.experiments import experiment, plan, text, texts, trial
from tests.reporting.page import Page

NOTE = "batch of 8 did not fit in memory: halved to 2"


def noted() -> Experiment:
    small = EvalScores(perplexity=(replace(text("wiki", 30.0), notes=(NOTE,)),))
    cut = plan((9, 10), ("ppl", 0.07))
    trials = (trial("a", cut, after=small), trial("b", plan((9,), ("ppl", 0.03)), after=texts(wiki=28.0)))
    return replace(experiment(), trials=trials, dense_selection=small, dense_report=EvalScores())


def test_notes_stand_with_the_protocol_and_name_their_models(tmp_path: Path) -> None:
    view = report_view(noted())
    (line,) = [line for line in view.protocols if line.column.source == "wiki"]
    number = next(row.number for row in view.rows if row.trial.spec.fingerprint == "a")
    assert line.notes == (f"{NOTE} (dense, #{number})",)
    page = Page(write_report(noted(), tmp_path).read_text())
    assert page.text.count(f"{NOTE} (dense, #{number})") == 2  # protocols, and details of the trial
    assert page.text.count(f"{NOTE} (dense)") == 1  # details of the other trial, beside the dense score


def test_a_report_of_plain_scores_has_none(tmp_path: Path) -> None:
    assert not any(line.notes for line in report_view(experiment()).protocols)


def test_downloads_with_infinite_scores_are_strict_json(tmp_path: Path) -> None:
    full = noted()
    broken = replace(full, dense_selection=EvalScores(perplexity=(replace(text("wiki", 30.0), perplexity=math.inf),)))
    write_report(broken, tmp_path)

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    content = (tmp_path / "trials.json").read_text()
    json.loads(content, parse_constant=refuse)
    assert from_json(Experiment, content) == broken
