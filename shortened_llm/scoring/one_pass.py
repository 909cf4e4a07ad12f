"""One walk over the blocks for every forward-only criterion: each block's weights are read once.

The walk carries the dense hidden states and, where a criterion asks for it, those of every candidate: the model without
one block, or sub-layer, that was already passed. For N blocks that is N (N + 1) / 2 block applications and N + 1 heads
instead of the N (N - 1) and N + 1 of bypassing each block in turn; for their 2 N sub-layers N (N + 2) and 2 N + 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from shortened_llm.criteria.criterion import ANGLE, COSINE, KL, NLL, BlockStatistic
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.logs import StepLog
from shortened_llm.models.parts import without_parts
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.vocabulary import vocabulary_losses
from shortened_llm.models.walk import BlockWalk, sequences_in_memory
from shortened_llm.records import PARTS, UNIT_TITLES, Part, PruneUnit, num_units, parts_of, unit_name

OF_CANDIDATES = frozenset({NLL, KL})


def walk_statistics(
    streamed: StreamedModel,
    tokens: torch.Tensor,
    statistics: Iterable[str | BlockStatistic],
    *,
    unit: PruneUnit = "block",
    memory_gib: float | None,
    candidates: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Measure `statistics` on each sequence, in as many passes over the weights as memory asks for.

    Args:
        tokens: calibration sequences, [sequences, length], in CPU memory.
        statistics: names of `criteria.criterion.STATISTICS`, and others from the states before and after each unit.
        unit: what is scored.
        memory_gib: for hidden states; half of the free memory unless given.
        candidates: units to measure losses without, ascending; all unless given. Of the others the losses are NaN.

    Raises:
        NonFiniteLossError: naming the unit and the sequence.
    """
    asked = {COSINE_OF_UNIT if statistic == COSINE else statistic for statistic in statistics}
    wanted = frozenset(statistic for statistic in asked if isinstance(statistic, str))
    of_blocks = tuple(statistic for statistic in asked if isinstance(statistic, BlockStatistic))
    number = num_units(unit, streamed.num_blocks)
    units = tuple(range(number)) if candidates is None else tuple(candidates)
    if not (with_losses := bool(wanted & OF_CANDIDATES)):
        units = ()
    plan = _Plan(unit=unit, candidates=units, wanted=wanted, of_units=of_blocks)
    states = 1 + len(units) + len(UNIT_TITLES[unit]) * bool(of_blocks)
    batches = tokens.split(sequences_in_memory(streamed, states, tokens.shape[1], memory_gib))
    in_blocks = sum(1 + sum(parts_of(unit, one)[0] < block for one in units) for block in range(streamed.num_blocks))
    work = in_blocks + (_head_work(streamed, len(units) + 1) if with_losses else 0)
    steps = StepLog(work * len(batches))
    walk = BlockWalk.of(streamed, tokens.shape[1])
    parts: list[dict[str, np.ndarray]] = []
    first = 0
    for batch in batches:
        parts.append(_walk_batch(walk, batch, first, plan, steps))
        first += len(batch)
    names = sorted({*wanted, *(statistic.name for statistic in of_blocks)})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a walk measures."""

    unit: PruneUnit
    candidates: tuple[int, ...]
    """Units, ascending, of which the losses without each are wanted."""
    wanted: frozenset[str]
    of_units: tuple[BlockStatistic, ...]


def parts_by_block(unit: PruneUnit, candidates: Iterable[int]) -> dict[int, list[tuple[Part, ...]]]:
    """What each block loses in each candidate that concerns it."""
    found: dict[int, list[tuple[Part, ...]]] = {}
    for block, parts in (parts_of(unit, one) for one in candidates):
        found.setdefault(block, []).append(parts)
    return found


@torch.inference_mode()
def _walk_batch(
    walk: BlockWalk, tokens: torch.Tensor, first_sequence: int, plan: _Plan, steps: StepLog
) -> dict[str, np.ndarray]:
    num_blocks, num_sequences = walk.streamed.num_blocks, len(tokens)
    names = [unit_name(plan.unit, one) for one in range(num_units(plan.unit, num_blocks))]
    states = walk.new_states(len(plan.candidates) + 1, tokens)
    live = 1
    last_tokens = [states[0, :, -1].double()]
    by_block = parts_by_block(plan.unit, plan.candidates)
    numbers: dict[str, list[torch.Tensor]] = {statistic.name: [] for statistic in plan.of_units}
    for index, block in walk.streamed.read_blocks(range(num_blocks)):
        passing = [states[0].clone()] if plan.of_units else []
        if plan.of_units and plan.unit == "sublayer":
            passing.append(states[0].clone())
            with without_parts(block, PARTS[1:]):
                walk.apply_in_place(index, block, passing[-1])
        passed, live = live, advance(walk, index, block, states, live, by_block.get(index, []))
        steps.add(passed)
        for statistic in plan.of_units:
            for before, after in pairwise([*passing, states[0]]):
                numbers[statistic.name].append(_of_unit(statistic, before, after, walk.sequences_per_call))
        last_tokens.append(states[0, :, -1].double())
    found: dict[str, np.ndarray] = {}
    for name, columns in numbers.items():
        found[name] = torch.stack(columns, dim=1).cpu().numpy()
        check_finite(found[name], [f"{one} puts out states of {name}" for one in names], first_sequence)
    if ANGLE in plan.wanted:
        found[ANGLE] = _angles(torch.stack(last_tokens, dim=1)).cpu().numpy()
        after_each = found[ANGLE][:, range(num_blocks), range(1, num_blocks + 1)]
        check_finite(
            after_each, [f"block {block} turns the last token by angle" for block in range(num_blocks)], first_sequence
        )
    if plan.wanted & OF_CANDIDATES:
        walk.finish_in_place(states.flatten(0, 1))
        work, reported = _head_work(walk.streamed, len(states)), 0

        def on_share(share: float) -> None:
            nonlocal reported
            if (now := int(work * share)) > reported:
                steps.add(now - reported)
                reported = now

        losses = vocabulary_losses(walk.streamed, states, tokens, with_kl=KL in plan.wanted, on_share=on_share)
        predictions = tokens.shape[1] - 1
        without = [f"the model without {names[one]} has" for one in plan.candidates]
        nll = losses.nll.T.numpy() / predictions
        check_finite(nll, ["the dense model has loss", *(f"{model} loss" for model in without)], first_sequence)
        found[NLL] = np.full((num_sequences, len(names) + 1), np.nan)
        found[NLL][:, [0, *(1 + one for one in plan.candidates)]] = nll
        if losses.kl is not None:
            found[KL] = np.full((num_sequences, len(names)), np.nan)
            kl = losses.kl[1:].T.numpy() / predictions
            check_finite(kl, [f"{model} KL divergence" for model in without], first_sequence)
            found[KL][:, list(plan.candidates)] = kl
    return found


def _head_work(streamed: StreamedModel, models: int) -> int:
    """The heads' work for so many models, in applications of a block."""
    in_block = sum(weight.numel() for weight in streamed.blocks[0].parameters())
    return max(1, models * streamed.model.get_output_embeddings().weight.numel() // in_block)


def advance(
    walk: BlockWalk,
    index: int,
    block: torch.nn.Module,
    states: torch.Tensor,
    live: int,
    lost: Sequence[tuple[Part, ...]],
) -> int:
    """Apply one block to the first `live` of the states [models, sequences, length, hidden]; returns how many live now.

    Row 0 is the whole model. For each entry of `lost`, sub-layers that the block loses in a candidate, the next row
    becomes that candidate: from what the whole model had before the block, by the block without them.
    """
    for row in range(live, live + len(lost)):
        states[row] = states[0]
    walk.apply_in_place(index, block, states[:live].flatten(0, 1))
    for row, parts in enumerate(lost, start=live):
        if parts != PARTS:
            with without_parts(block, parts):
                walk.apply_in_place(index, block, states[row])
    return live + len(lost)


def check_finite(values: np.ndarray, columns: Sequence[str], first_sequence: int) -> None:
    """Raise for the first value [sequences, columns] that is not finite."""
    bad = np.argwhere(~np.isfinite(values.T))
    if len(bad):
        column, sequence = bad[0].tolist()
        value = values[sequence, column]
        raise NonFiniteLossError(f"{columns[column]} {value} on calibration sequence {first_sequence + sequence}")


def _of_unit(
    statistic: BlockStatistic, before: torch.Tensor, after: torch.Tensor, sequences_at_once: int
) -> torch.Tensor:
    """The statistic of each sequence, fp64 [sequences], of states [sequences, length, hidden]."""
    parts = zip(before.split(sequences_at_once), after.split(sequences_at_once), strict=True)
    return torch.cat([statistic.function(one, other).double() for one, other in parts])


def _mean_cosines(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(before.float(), after.float(), dim=-1).double().mean(dim=1)


COSINE_OF_UNIT = BlockStatistic(name=COSINE, function=_mean_cosines)


def _angles(states: torch.Tensor) -> torch.Tensor:
    """Angle / pi between any two of the states [sequences, places, hidden], fp64; [sequences, places, places]."""
    # In fp64: the arc cosine of a value near 1 magnifies rounding.
    unit = torch.nn.functional.normalize(states, dim=-1)
    return (unit @ unit.transpose(1, 2)).clamp(-1, 1).arccos() / torch.pi
