"""How often a trial sees its corpus."""

from shortened_llm.config import RetrainingConfig
from shortened_llm.records import TokenMixture

MOST_EPOCHS = 4
"""More passes over a corpus teach little (arXiv 2305.16264)."""


def many_epochs(retraining: RetrainingConfig, corpus: TokenMixture) -> str | None:
    """In words, how often the largest budget passes a corpus, where that is too often; None where it is not."""
    tokens, budget = corpus.num_sequences * retraining.sequence_length, max(retraining.budgets)
    epochs = budget / max(1, tokens)
    if epochs <= MOST_EPOCHS:
        return None
    return (
        f"The corpus holds {tokens:,} tokens: a budget of {budget:,} passes it {epochs:,.0f} times, and more than "
        f"{MOST_EPOCHS} teach little."
    )
