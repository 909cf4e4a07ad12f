"""From scores of heads and channels to the widths that reach a target."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np

from shortened_llm.criteria.width.criterion import standardised
from shortened_llm.errors import BadInputError
from shortened_llm.logs import LOGGER
from shortened_llm.records import ModelSize, Narrowing, Target, WidthScores, WidthsTransform, packed, unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What there is to cut, in parameters."""

    blocks: int
    groups: int
    channels: int
    group: int
    """Parameters of one group."""
    channel: int
    target: Fraction
    """Parameters to remove, over all blocks."""


def narrow(scores: WidthScores, target: Target, size: ModelSize) -> WidthsTransform:
    """The heads and channels of each block that stay; of equal scores the earlier unit goes.

    Raises:
        BadInputError: the ratio removes nothing, or leaves a block without heads or channels.
    """
    groups, channels = (np.array([unpacked(text) for text in of]) for of in (scores.groups, scores.channels))
    cut = scores.narrowing.cut(len(groups))
    groups, channels = groups[cut.start : cut.stop], channels[cut.start : cut.stop]
    assert size.width_parameters is not None, "checked before anything is scored"
    group, channel = size.width_parameters
    sizes = _Sizes(
        blocks=len(cut), groups=groups.shape[1], channels=channels.shape[1], group=group, channel=channel,
        target=Fraction(str(target.ratio)) * size.without(()).parameters,
    )  # fmt: skip
    if scores.narrowing.allocation == "uniform":
        gone_groups, gone_channels = uniform_cut(sizes, scores.narrowing, target)
        kept_groups = [_highest(row, sizes.groups - gone_groups) for row in groups]
        kept_channels = [_highest(row, sizes.channels - gone_channels) for row in channels]
    else:
        if not scores.is_standardised:
            # A block has few groups: theirs are standardised over all blocks.
            groups, channels = standardised(groups.reshape(1, -1)).reshape(groups.shape), standardised(channels)
        kept_groups, kept_channels = _over_all_blocks(groups, channels, sizes, scores.narrowing, target)
    return WidthsTransform.keeping(
        num_groups=sizes.groups,
        num_channels=sizes.channels,
        groups=dict(zip(cut, kept_groups, strict=True)),
        channels=dict(zip(cut, kept_channels, strict=True)),
    )


def typical(widths: tuple[int, int], narrowing: Narrowing, target: Target, size: ModelSize) -> WidthsTransform:
    """A transform of the same shape as any that reaches the target by uniform widths; raises as `narrow`.

    Args:
        widths: numbers of groups and channels of a block.
    """
    blocks = len(size.block_parameters)
    groups, channels = (tuple([packed([0.0] * number)] * blocks) for number in widths)
    scores = WidthScores(
        criterion="", groups=groups, channels=channels, narrowing=narrowing, protocol="", fingerprint=""
    )
    return narrow(scores, target, size)


def uniform_cut(sizes: _Sizes, narrowing: Narrowing, target: Target) -> tuple[int, int]:
    """How many groups and channels every block loses; raises as `narrow`."""
    each = sizes.target / sizes.blocks
    heads, inner = sizes.groups * sizes.group, sizes.channels * sizes.channel
    gone_groups = 0
    if narrowing.parts != "mlp":
        whole = heads + (inner if narrowing.parts == "both" else 0)
        gone_groups = _rounded(each / whole * sizes.groups) if whole else 0
        if not gone_groups and narrowing.parts == "both" and heads:
            LOGGER.info("%s removes no key-value head of %d: channels carry all of it", target.name, sizes.groups)
    gone_channels = 0
    if narrowing.parts != "attention":
        kept = sizes.channels - (each - gone_groups * sizes.group) / sizes.channel
        gone_channels = sizes.channels - _rounded(kept / narrowing.round_to) * narrowing.round_to
    _check(gone_groups, gone_channels, sizes, narrowing, target)
    return gone_groups, max(0, gone_channels)


def _check(gone_groups: int, gone_channels: int, sizes: _Sizes, narrowing: Narrowing, target: Target) -> None:
    if gone_groups <= 0 and gone_channels <= 0:
        raise BadInputError(
            f"search.ratios: {target.ratio} (search.of: {target.of}) removes none of the {sizes.groups} key-value "
            f"heads and {sizes.channels} channels of a block, in multiples of {narrowing.round_to}; give a larger one"
        )
    if gone_groups >= sizes.groups or gone_channels > sizes.channels - narrowing.round_to:
        raise BadInputError(
            f"search.ratios: {target.ratio} (search.of: {target.of}) would remove {gone_groups} of {sizes.groups} "
            f"key-value heads and {gone_channels} of {sizes.channels} channels of a block by pruning.parts "
            f"{narrowing.parts}; some must stay: give a smaller ratio, or other parts"
        )


def _over_all_blocks(
    groups: np.ndarray, channels: np.ndarray, sizes: _Sizes, narrowing: Narrowing, target: Target
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """What stays where the units that score lowest over all blocks go.

    A block keeps a multiple of `round_to` channels, and a group; so many channels go at a time, by their mean score.
    """
    allowed = [
        (groups, sizes.group, 1, narrowing.parts != "mlp" and sizes.group > 0),
        (channels, sizes.channel, narrowing.round_to, narrowing.parts != "attention"),
    ]
    candidates: list[tuple[float, int, int, int, list[int]]] = []
    for kind, (scores, _, multiple, is_cut) in enumerate(allowed):
        for block, row in enumerate(scores if is_cut else ()):
            order = np.argsort(row, kind="stable")
            ends = range(len(row) % multiple or multiple, len(row) - multiple + 1, multiple)
            for start, end in pairwise((0, *ends)):
                score = float(row[order[start:end]].mean())
                candidates.append((score, kind, block, start, order[start:end].tolist()))
    gone: tuple[list[set[int]], list[set[int]]] = ([set() for _ in groups], [set() for _ in channels])
    removed = 0
    for _, kind, block, _, units in sorted(candidates):
        parameters = len(units) * allowed[kind][1]
        if removed + Fraction(parameters, 2) > sizes.target:
            break
        gone[kind][block].update(units)
        removed += parameters
    most = sum(len(units) * allowed[kind][1] for _, kind, _, _, units in candidates)
    if not removed or sizes.target > most:
        raise BadInputError(
            f"search.ratios: {target.ratio} (search.of: {target.of}) asks for {int(sizes.target):,} parameters of "
            f"heads and channels, and between one unit and {most:,} can go; give another ratio"
        )
    return (
        [tuple(sorted(set(range(sizes.groups)) - lost)) for lost in gone[0]],
        [tuple(sorted(set(range(sizes.channels)) - lost)) for lost in gone[1]],
    )


def _highest(scores: np.ndarray, number: int) -> tuple[int, ...]:
    """The units with the highest scores, ascending; of equal ones the later stays."""
    return tuple(sorted(np.argsort(scores, kind="stable")[len(scores) - number :].tolist()))


def _rounded(value: Fraction) -> int:
    """Half up."""
    return int((Decimal(value.numerator) / Decimal(value.denominator)).quantize(Decimal(1), rounding=ROUND_HALF_UP))
