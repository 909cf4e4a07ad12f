"""Block scores as text for the terminal."""

from shortened_llm.records import BlockScores

BAR_WIDTH = 30


def score_table(scores: BlockScores) -> str:
    """One line per block, least important first: rank, block, score, its standard error, a bar; `*` is protected.

    The bar is linear from the lowest to the highest score of the unprotected blocks; a longer one is cut.
    """
    shown = [scores.scores[b] for b in scores.order if b not in scores.protected] or list(scores.scores)
    low, high = min(shown), max(shown)
    title = f"{scores.criterion}: {scores.protocol}"
    if scores.dense_perplexity is not None:
        title += f"; dense perplexity {scores.dense_perplexity:.4g}"
    lines = [title, f"{'rank':>4} {'block':>5}  {'score':>11}  {'std. error':>10}"]
    for rank, block in enumerate(scores.order, start=1):
        score = scores.scores[block]
        error = f"{scores.standard_errors[block]:10.3g}" if scores.standard_errors else f"{'-':>10}"
        share = min(1.0, (score - low) / (high - low)) if high > low else 0.0
        mark = "*" if block in scores.protected else " "
        lines.append(f"{rank:>4} {block:>5}{mark} {score:>11.5g}  {error}  {'#' * round(max(0.0, share) * BAR_WIDTH)}")
    return "\n".join(lines)
