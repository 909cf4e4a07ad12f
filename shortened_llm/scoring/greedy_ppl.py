"""Greedy PPL: remove the block, or sub-layer, whose absence costs least, score what is left, repeat."""

from collections.abc import Mapping

import numpy as np
import torch

from shortened_llm.criteria.greedy_ppl import cheapest
from shortened_llm.logs import StepLog
from shortened_llm.models.parts import without_parts
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.vocabulary import vocabulary_losses
from shortened_llm.models.walk import BlockWalk, sequences_in_memory
from shortened_llm.records import PARTS, Part, PruneUnit, lost_parts, num_units, parts_of, unit_name
from shortened_llm.scoring.one_pass import advance, check_finite, parts_by_block


def measure_greedy_ppl(
    streamed: StreamedModel,
    tokens: torch.Tensor,
    protected: tuple[int, ...],
    num_removed: int,
    *,
    unit: PruneUnit = "block",
    memory_gib: float | None,
) -> np.ndarray:
    """Mean loss in nats per prediction at each step, [num_removed, 1 + units].

    Row k belongs to the model that k removals have shortened: first its own loss, then the loss without each unit too.
    NaN for units that are gone or protected: protection holds during the search.

    What a removal does not change is not computed again: the states before the block that changed are those of the
    step before. They are kept before as many blocks as memory allows, and a step begins at the last of these.

    Cost: at most `num_removed` times that of `ppl`.

    Args:
        tokens: calibration sequences, [sequences, length], in CPU memory.
        memory_gib: for hidden states; half of the free memory unless given.
    """
    number = num_units(unit, streamed.num_blocks)
    walk = BlockWalk.of(streamed, tokens.shape[1])
    removed: list[int] = []
    losses = np.full((num_removed, 1 + number), np.nan)
    most_states = 1 + number - len(protected)
    room = sequences_in_memory(streamed, 1, tokens.shape[1], memory_gib)  # for one state each
    batches = tokens.split(max(1, room // most_states))
    # Prefixes are kept where the whole calibration set is walked at once.
    spare = (room - most_states * len(tokens)) // len(tokens) if len(batches) == 1 else 0
    saved: dict[int, torch.Tensor] = {}
    steps = StepLog(num_removed)
    for step in range(num_removed):
        lost = lost_parts(unit, removed)
        kept = [block for block in range(streamed.num_blocks) if lost.get(block, ()) != PARTS]
        candidates = [one for one in range(number) if one not in removed and one not in protected]
        by_block = parts_by_block(unit, candidates)
        where = _places_to_save(kept, [parts_of(unit, one)[0] for one in candidates], spare)
        sums = np.zeros((len(tokens), 1 + len(candidates)))
        first = 0
        for batch in batches:
            sums[first : first + len(batch)] = _walk_step(walk, batch, kept, lost, by_block, saved, where)
            first += len(batch)
        gone = ", ".join(unit_name(unit, one) for one in sorted(removed))
        base = f"without {gone}" if removed else "as it is"
        columns = [f"the model {base}", *(f"the model {base} and without {unit_name(unit, one)}" for one in candidates)]
        check_finite(sums, [f"{column} has loss" for column in columns], 0)
        losses[step, [0, *(1 + one for one in candidates)]] = sums.mean(axis=0) / (tokens.shape[1] - 1)
        removed.append(cheapest(losses[step]))
        changed, _ = parts_of(unit, removed[-1])
        saved = {place: states for place, states in saved.items() if place <= changed}
        steps.add()
    return losses


@torch.inference_mode()
def _walk_step(
    walk: BlockWalk,
    tokens: torch.Tensor,
    kept: list[int],
    lost: Mapping[int, tuple[Part, ...]],
    candidates: Mapping[int, list[tuple[Part, ...]]],
    saved: dict[int, torch.Tensor],
    where: frozenset[int],
) -> np.ndarray:
    """Summed losses, [sequences, 1 + candidates]; adds to `saved` the live states before the blocks `where`."""
    start = max(saved, default=kept[0])
    prefix = saved[start] if saved else walk.new_states(1, tokens)
    states = prefix.new_empty((1 + sum(map(len, candidates.values())), *prefix.shape[1:]))
    live = len(prefix)
    states[:live] = prefix
    for index, block in walk.streamed.read_blocks([block for block in kept if block >= start]):
        if index in where:
            saved.setdefault(index, states[:live].clone())
        with without_parts(block, lost.get(index, ())):
            live = advance(walk, index, block, states, live, candidates.get(index, []))
    walk.finish_in_place(states.flatten(0, 1))
    return vocabulary_losses(walk.streamed, states, tokens, with_kl=False).nll.T.numpy()


def _places_to_save(kept: list[int], candidates: list[int], spare_states: int) -> frozenset[int]:
    """Blocks, evenly spaced, before which the live states of all candidates together fit into the spare memory."""
    sizes = {block: 1 + sum(candidate < block for candidate in candidates) for block in kept[1:]}
    for stride in range(1, len(kept)):
        places = kept[stride::stride]
        if sum(sizes[place] for place in places) <= spare_states:
            return frozenset(places)
    return frozenset()
