"""Scores as text for the terminal."""

from statistics import median

from shortened_llm.records import UnitScores, WidthScores, unit_name, unpacked

BAR_WIDTH = 30


def score_table(scores: UnitScores) -> str:
    """One line per unit, least important first: rank, unit, score, its standard error, a bar, and for each cut how
    often the unit would go; `*` is protected, `?` undecided.

    The bar is linear from the lowest to the highest score of the unprotected units; a longer one is cut.
    """
    free = [unit for unit in scores.order if unit not in scores.protected]
    shown = [score for unit in free if (score := scores.scores[unit]) is not None] or [0.0]
    low, high = min(shown), max(shown)
    title = f"{scores.ranking}: {scores.protocol}"
    if scores.dense_perplexity is not None:
        title += f"; dense perplexity {scores.dense_perplexity:.4g}"
    cuts = scores.cuts or ()
    chances = "".join(f"{f'P(cut {cut.count})':>11}" for cut in cuts)
    lines = [title, f"{'rank':>4} {'unit':>12}  {'score':>11}  {'std. error':>10}{chances}"]
    for rank, unit in enumerate(scores.order, start=1):
        score, error = scores.scores[unit], scores.standard_errors[unit] if scores.standard_errors else None
        share = 0.0 if score is None or high == low else min(1.0, max(0.0, (score - low) / (high - low)))
        cells = [
            f"{'-':>11}" if score is None else f"{score:>11.5g}",
            f"{'-':>10}" if error is None else f"{error:10.3g}",
        ]
        marks = "".join(f"{cut.probabilities[unit]:>10.2f}{'?' if unit in cut.undecided else ' '}" for cut in cuts)
        name = unit_name(scores.unit, unit) + ("*" if unit in scores.protected else " ")
        lines.append(f"{rank:>4} {name:>13} {cells[0]}  {cells[1]}{marks}  {'#' * round(share * BAR_WIDTH)}")
    for chosen in scores.sets or ():
        if len(chosen) in {cut.count for cut in cuts}:
            lines.append(f"removed at {len(chosen)}: {', '.join(unit_name(scores.unit, one) for one in chosen)}")
    return "\n".join(lines)


def width_table(scores: WidthScores) -> str:
    """One line per block: the lowest, the median and the highest score of its key-value heads and of its channels."""
    titles = [f"{title + ': lowest':>16} {'median':>11} {'highest':>11}" for title in ("KV heads", "channels")]
    lines = [f"{scores.ranking}: {scores.protocol}", "  ".join([f"{'block':>5}", *titles])]
    for block, both in enumerate(zip(scores.groups, scores.channels, strict=True)):
        cells = []
        for values in map(unpacked, both):
            cells.append(f"{min(values):>16.5g} {median(values):>11.5g} {max(values):>11.5g}")
        lines.append(f"{block:>5}  {'  '.join(cells)}")
    return "\n".join(lines)
