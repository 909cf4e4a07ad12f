"""What a reader should know of how single scores were measured, beside the protocol that they share."""

from collections.abc import Sequence

from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.rows import TrialRow


def score_notes(column: ScoreColumn, dense: Measurements, rows: Sequence[TrialRow]) -> tuple[str, ...]:
    """Each note once, with the models that it is about: `batch of 8 did not fit … (dense, #3 before)`."""
    models = [("dense", dense)]
    for row in rows:
        models += [(f"#{row.number} before", row.before), (f"#{row.number}", row.after)]
    names: dict[str, list[str]] = {}
    for name, found in models:
        for note in found[column].notes if column in found else ():
            names.setdefault(note, []).append(name)
    return tuple(f"{note} ({', '.join(about)})" for note, about in names.items())
