"""Scores of several models in the terminal."""

from pathlib import Path

import numpy as np

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.perplexity import TextChunk, TextPart, perplexity_score
from shortened_llm.evaluation.table import comparison_table
from shortened_llm.records import EvalScores, EvaluatedModel, ModelRef, PerplexityScore


def model(name: str, **perplexities: float) -> EvaluatedModel:
    """Measured on texts that all are called `test`, one for each set of documents."""
    scores = EvalScores(
        perplexity=tuple(
            PerplexityScore(
                source="test", protocol="@128", perplexity=value, mean_nll=1.0, num_predictions=9, documents=documents
            )
            for documents, value in perplexities.items()
        )
    )
    ref = ModelRef(url=name, fingerprint=name, files=(), num_blocks=2)
    return EvaluatedModel(model=name, ref=ref, selection=EvalScores(), report=scores)


def test_two_texts_of_one_name_have_a_line_each() -> None:
    first, second = comparison_table([model("dense", a=25.0, b=12.0), model("pruned", b=13.0)]).splitlines()[1:]
    assert first.split() == ["report", "perplexity", "test", "25.0000", "-", "@128"]
    assert second.split() == ["report", "perplexity", "test", "(2)", "12.0000", "13.0000", "@128"]


def test_one_text_of_two_models_has_one_line() -> None:
    (line,) = comparison_table([model("dense", a=25.0), model("pruned", a=26.0)]).splitlines()[1:]
    assert line.split()[3:] == ["25.0000", "26.0000", "@128"]


def test_a_score_names_its_documents_wherever_they_lie(tmp_path: Path) -> None:
    def measured(place: str, content: str) -> str:
        path = tmp_path / place
        path.write_text(content)
        source = PerplexitySource(path=str(path))
        documents = Documents(
            source=source, purpose="report", shared_with=(), files=(str(path),), commit=None, field_path="evaluation"
        )
        chunk = TextChunk(nll=np.ones(3, np.float32), documents=np.zeros(3, np.int64))
        return perplexity_score([TextPart(chunks={0: chunk}, num_chunks=1)], documents, source).documents

    first, other, moved = measured("a.txt", "one"), measured("b.txt", "two"), measured("c.txt", "one")
    assert first == moved != other
