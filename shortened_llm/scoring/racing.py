"""Racing: read more text only for the blocks whose side of a cut is still open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from shortened_llm.models.stream import StreamedModel
from shortened_llm.records import RESAMPLES, Cut
from shortened_llm.scoring.confidence import surely_negative
from shortened_llm.scoring.criterion import CriterionScores, Progress
from shortened_llm.scoring.one_pass import COSINE, NLL, walk_statistics

# Chance of any wrong decision in a race, whenever it ends.
ALPHA = 0.05
# The test is most powerful after so many rounds.
HORIZON_ROUNDS = 4


@dataclass(slots=True, kw_only=True)
class Slots:
    """The race for one cut."""

    count: int
    """Blocks that go."""
    open: set[int]
    going: set[int] = field(default_factory=set)
    staying: set[int] = field(default_factory=set)

    def decide(self, lower: np.ndarray) -> None:
        """Settle every open block that is sure to be among the `count` lowest, or sure not to be.

        Args:
            lower: `lower[i, j]` where block i is surely lower than block j, [blocks, blocks].
        """
        settled = True
        while settled:
            settled = False
            for block in sorted(self.open):
                rivals = sorted(self.open - {block})
                places = self.count - len(self.going)
                if lower[block, rivals].sum() >= len(rivals) + 1 - places:
                    self.going.add(block)
                elif lower[rivals, block].sum() >= places:
                    self.staying.add(block)
                else:
                    continue
                self.open.remove(block)
                settled = True


def race(
    streamed: StreamedModel,
    tokens: torch.Tensor,
    statistic: str,
    counts: tuple[int, ...],
    protected: tuple[int, ...],
    round_size: int,
    *,
    memory_gib: float | None,
    on_progress: Progress,
) -> np.ndarray:
    """What each block costs on as many sequences as it needs, [sequences, 1 + blocks]; NaN where it was not read.

    Every round reads `round_size` more sequences for the blocks that are still open at some cut, until none is or
    `tokens` are used up. Column 0 is the dense model's loss, or 0 where the statistic is a difference already.

    Args:
        tokens: as many sequences as may be read, [sequences, length].
        statistic: of `one_pass`, with one value per block and sequence.
    """
    batches = tokens.split(round_size)
    costs = np.empty((0, 1 + streamed.num_blocks))
    slots = _at_the_start(streamed.num_blocks, counts, protected)
    blocks: tuple[int, ...] = tuple(range(streamed.num_blocks))  # each is read once, protected or not
    for before, batch in enumerate(batches):

        def on_round(step: int, steps: int, before: int = before) -> None:
            on_progress(before * steps + step, len(batches) * steps)

        found = walk_statistics(
            streamed, batch, [statistic], memory_gib=memory_gib, on_progress=on_round, candidates=blocks
        )
        costs = np.concatenate([costs, _costs(found[statistic], statistic, blocks)])
        _settle(slots, costs[:, 1:], protected, round_size)
        if not (blocks := open_blocks(slots)):
            break
    return costs


def _costs(values: np.ndarray, statistic: str, blocks: Sequence[int]) -> np.ndarray:
    """[sequences, 1 + blocks], lower for blocks that matter less; NaN for blocks that are not asked about."""
    if statistic == NLL:
        costs = values.copy()
    else:
        per_block = 1 - values if statistic == COSINE else values
        costs = np.concatenate([np.zeros((len(values), 1)), per_block], axis=1)
    costs[:, [1 + block for block in range(costs.shape[1] - 1) if block not in blocks]] = np.nan
    return costs


def open_blocks(slots: Sequence[Slots]) -> tuple[int, ...]:
    """Blocks whose side of some cut is not decided, ascending."""
    return tuple(sorted(set().union(*(slot.open for slot in slots))))


def replay(
    costs: np.ndarray, counts: tuple[int, ...], protected: tuple[int, ...], round_size: int
) -> tuple[Slots, ...]:
    """What a race over costs [sequences, blocks] has decided, round by round."""
    slots = _at_the_start(costs.shape[1], counts, protected)
    for start in range(0, len(costs), round_size):
        _settle(slots, costs[: start + round_size], protected, round_size)
    return slots


def _at_the_start(num_blocks: int, counts: tuple[int, ...], protected: tuple[int, ...]) -> tuple[Slots, ...]:
    """One race per cut, with every unprotected block open."""
    return tuple(Slots(count=count, open=set(range(num_blocks)) - set(protected)) for count in counts)


def _settle(slots: Sequence[Slots], seen: np.ndarray, protected: tuple[int, ...], round_size: int) -> None:
    """Decide what the costs [sequences, blocks] of all rounds so far allow."""
    num_blocks = seen.shape[1]
    racing = num_blocks - len(protected)
    pairs = max(1, racing * (racing - 1) // 2)  # each may be told wrongly
    still_open = list(open_blocks(slots))  # and so read on every sequence so far
    lower = np.zeros((num_blocks, num_blocks), dtype=bool)
    for block in still_open:
        differences = seen[:, [block]] - seen[:, still_open]
        lower[block, still_open] = surely_negative(differences, ALPHA / pairs, HORIZON_ROUNDS * round_size)
    for slot in slots:
        slot.decide(lower)


def raced_scores(costs: np.ndarray, slots: Sequence[Slots], *, is_loss: bool) -> CriterionScores:
    """Scores from samples of different sizes; the blocks of each cut are those of the race, filled up by score.

    A block's score is column 0's mean over all sequences plus the block's paired difference over its own, so that
    blocks which were read on different sequences compare.

    Args:
        costs: as raced, [sequences, 1 + blocks].
        slots: what the race decided.
        is_loss: costs are losses in nats, and scores perplexities.
    """
    base = costs[:, 0].mean()
    differences = costs[:, 1:] - costs[:, :1]
    scores = base + np.nanmean(differences, axis=0)
    errors = np.nanstd(differences, axis=0, ddof=1) / np.sqrt(sequences_read(costs))
    if is_loss:
        scores = np.exp(scores)
        errors = errors * scores
    order = CriterionScores(scores=tuple(scores.tolist())).order
    sets = []
    for slot in slots:
        undecided = [block for block in order if block in slot.open]
        sets.append(tuple(sorted(slot.going | set(undecided[: slot.count - len(slot.going)]))))
    return CriterionScores(
        scores=tuple(scores.tolist()),
        standard_errors=tuple(errors.tolist()),
        dense_perplexity=math.exp(base) if is_loss else None,
        sets=tuple(sets),
    )


def raced_cuts(costs: np.ndarray, slots: Sequence[Slots], sets: Sequence[tuple[int, ...]]) -> tuple[Cut, ...]:
    """For each cut, which blocks go: 1 or 0 where the race decided, else their share of the resamples.

    Undecided blocks were read on every sequence; they are ranked anew over resampled sequences for the places left.

    Args:
        costs: as raced, [sequences, 1 + blocks].
        sets: the blocks that go, as scored.
    """
    generator = np.random.default_rng(0)
    samples = generator.integers(len(costs), size=(RESAMPLES, len(costs)))
    cuts = []
    for slot, removed in zip(slots, sets, strict=True):
        gone = np.zeros(costs.shape[1] - 1)
        gone[list(slot.going)] = RESAMPLES
        rivals, places = np.array(sorted(slot.open), dtype=int), slot.count - len(slot.going)
        for sample in samples if len(rivals) else ():
            lowest = costs[sample][:, 1 + rivals].mean(axis=0).argsort(kind="stable")[:places]
            gone[rivals[lowest]] += 1
        probabilities = tuple((gone / RESAMPLES).tolist())
        cuts.append(Cut(count=slot.count, removed=removed, probabilities=probabilities, open=tuple(sorted(slot.open))))
    return tuple(cuts)


def sequences_read(costs: np.ndarray) -> np.ndarray:
    """Sequences that each block was read on, [blocks]."""
    return (~np.isnan(costs[:, 1:])).sum(axis=0)
