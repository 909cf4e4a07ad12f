"""Block scores as text for the terminal."""

from shortened_llm.records import BlockScores

BAR_WIDTH = 30


def score_table(scores: BlockScores) -> str:
    """One line per block, least important first: rank, block, score, its standard error, a bar, and for each cut how
    often the block would go; `*` is protected, `?` undecided.

    The bar is linear from the lowest to the highest score of the unprotected blocks; a longer one is cut.
    """
    free = [block for block in scores.order if block not in scores.protected]
    shown = [score for block in free if (score := scores.scores[block]) is not None] or [0.0]
    low, high = min(shown), max(shown)
    title = f"{scores.ranking}: {scores.protocol}"
    if scores.dense_perplexity is not None:
        title += f"; dense perplexity {scores.dense_perplexity:.4g}"
    cuts = scores.cuts or ()
    chances = "".join(f"{f'P(cut {cut.count})':>11}" for cut in cuts)
    lines = [title, f"{'rank':>4} {'block':>5}  {'score':>11}  {'std. error':>10}{chances}"]
    for rank, block in enumerate(scores.order, start=1):
        score, error = scores.scores[block], scores.standard_errors[block] if scores.standard_errors else None
        share = 0.0 if score is None or high == low else min(1.0, max(0.0, (score - low) / (high - low)))
        cells = [
            f"{'-':>11}" if score is None else f"{score:>11.5g}",
            f"{'-':>10}" if error is None else f"{error:10.3g}",
        ]
        marks = "".join(f"{cut.probabilities[block]:>10.2f}{'?' if block in cut.undecided else ' '}" for cut in cuts)
        mark = "*" if block in scores.protected else " "
        lines.append(f"{rank:>4} {block:>5}{mark} {cells[0]}  {cells[1]}{marks}  {'#' * round(share * BAR_WIDTH)}")
    for chosen in scores.sets or ():
        if len(chosen) in {cut.count for cut in cuts}:
            lines.append(f"removed at {len(chosen)}: {', '.join(map(str, chosen))}")
    return "\n".join(lines)
