"""How numbers and names are written in a report. `None` is written as a dash, never as zero."""

import math
from collections.abc import Sequence

from shortened_llm.records import (
    PARTS,
    UNIT_TITLES,
    Bin,
    BlocksTransform,
    PrunePlan,
    PruneUnit,
    SublayersTransform,
    Target,
    TensorsTransform,
    Transform,
    UnitScores,
    WeightsTransform,
    WidthsTransform,
    num_units,
    of_kind,
    units_gone,
    units_of,
)

MISSING = "—"
"""Stands for a number that was not measured."""
TITLES = {"sublayers": "sub-layers"}
"""What ratios are fractions of, where it is called otherwise."""
UNDECIDED = "◉"
"""Marks a unit that the calibration text does not decide; plots draw it as a dot in a ring."""


def perplexity(value: float | None) -> str:
    """`24.07`, `1,204` or `3.1e6`: two decimals where a column is likely to be compared, fewer where it is not."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value < 1000:
        return f"{value:.2f}"
    if value < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def accuracy(value: float | None, standard_error: float | None = None) -> str:
    """`0.614 ± 0.011`; the standard error where there is one."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if standard_error is None else f"{value:.3f} ± {standard_error:.3f}"


def nll(value: float | None) -> str:
    """Nats per token; the fourth decimal is below any difference that matters."""
    return MISSING if value is None else f"{value:.3f}"


def significant(value: float | None, digits: int = 5) -> str:
    """`digits` significant digits, with thousands separators, or an exponent where a number is far from one."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    whole_digits = len(str(int(abs(value))))
    decimals = digits - whole_digits if abs(value) >= 1 else digits - 1 - math.floor(math.log10(abs(value) or 1))
    return f"{value:,.{max(0, decimals)}f}"


def compact(value: float | None, digits: int = 3) -> str:
    """A count with a unit: `20.5 k`, `134.5 M`, `6.738 B`."""
    if value is None:
        return MISSING
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale * (1 - 0.5 * 10**-digits):
            return f"{value / scale:.{digits}g} {unit}"
    return f"{value:.{digits}g}"


def parameters(value: float | None) -> str:
    """A number of parameters to four digits, which is what tells two plans of one size apart."""
    return compact(value, digits=4)


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """`16.1 %` from 0.161; the space does not break."""
    return MISSING if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def share(value: float) -> str:
    """`45 %` from 0.453, for a share of many tries; `<1 %` and `>99 %` where it was rare but not never."""
    sign, shown = "", round(100 * value)
    if shown == 0 and value > 0:
        sign, shown = "<", 1
    if shown == 100 and value < 1:
        sign, shown = ">", 99
    return f"{sign}{shown}\N{NO-BREAK SPACE}%"


def ratio(value: float) -> str:
    """`20 %` from 0.2: what was asked for, so without digits that nobody gave."""
    return f"{100 * value:.3g}\N{NO-BREAK SPACE}%"


def target(asked: Target) -> str:
    """`20 %`, or `20 % of parameters`."""
    return ratio(asked.ratio) + ("" if asked.of == "blocks" else f" of {TITLES.get(asked.of, asked.of)}")


def bin_name(asked: Bin, num_blocks: int) -> str:
    """`24 of 30 blocks`, `48 of 60 sub-layers`, or `20 % of parameters removed`."""
    of, value = asked
    if of == "blocks":
        return f"{value} of {num_blocks} blocks"
    if of == "sublayers":
        return f"{value} of {num_units('sublayer', num_blocks)} sub-layers"
    if of == "nonzero":
        return f"{ratio(value)} of parameters removed or zero"
    return f"{ratio(value)} of {of} removed"


def seconds(value: float | None) -> str:
    """Seconds: one decimal below a hundred."""
    if value is None:
        return MISSING
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def learning_rate(value: float | None) -> str:
    """`1e-4`, `2.5e-5`: the way learning rates are spoken of."""
    if value is None:
        return MISSING
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def learning_rates(values: Sequence[float]) -> str:
    """`1e-4`, or `1e-4 → 3e-3` for one run after another."""
    return " → ".join(map(learning_rate, values)) or MISSING


def difference(value: float, standard_error: float | None = None) -> str:
    """`+0.051 ± 0.012` nats, with a sign that is as wide as a plus."""
    signed = f"{value:+.3f}".replace("-", "−")
    return signed if standard_error is None else f"{signed} ± {standard_error:.3f}"


def hours(value: float | None) -> str:
    """Hours of a number of seconds, to three digits."""
    return MISSING if value is None else significant(value / 3600, 3) if value else "0"


def block_ranges(blocks: Sequence[int]) -> str:
    """`0–3, 5, 8–29` from ascending block indices; a dash where there are none."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or MISSING


def removed(plan: PrunePlan) -> str:
    """`4–7`, the dense model's blocks, `4–7, attention 3, MLP 12–14`, or `254 of 352 channels kept`."""
    return removed_by(plan.transforms, plan.dense.blocks)


def removed_by(transforms: Sequence[Transform], num_blocks: int) -> str:
    """What transforms remove of a model of so many blocks: see `removed`."""
    blocks, sublayers = of_kind(transforms, BlocksTransform), of_kind(transforms, SublayersTransform)
    parts = [block_ranges(blocks.removed(num_blocks))] if blocks else []
    if widths := of_kind(transforms, WidthsTransform):
        titles = {"kept_kv_heads": "KV heads", "kept_channels": "channels"}
        parts += [f"{text} {titles[name]} kept" for name, text in widths.facts(num_blocks).items()]
    for part, title in zip(PARTS, UNIT_TITLES["sublayer"], strict=True):
        if lost := [block for block, other in (sublayers.removed if sublayers else ()) if other == part]:
            parts.append(f"{title} {block_ranges(lost)}")
    if tensors := of_kind(transforms, TensorsTransform):
        parts.append(tensors.words)
    if weights := of_kind(transforms, WeightsTransform):
        parts.append(weights.words)
    return ", ".join(parts) or MISSING


def removed_count(plan: PrunePlan) -> str:
    """`6 of 30 blocks`, `12 of 60 sub-layers`, or `20.0 % of parameters`."""
    if of_kind(plan.transforms, WidthsTransform):
        return f"{percent(plan.parameter_ratio)} of parameters"
    if of_kind(plan.transforms, WeightsTransform):
        return f"{percent(1 - plan.size.nonzero_parameters / plan.dense.parameters)} of parameters"
    unit: PruneUnit = "sublayer" if of_kind(plan.transforms, SublayersTransform) else "block"
    title = "sub-layers" if unit == "sublayer" else "blocks"
    return (
        f"{len(units_gone(unit, plan.transforms, plan.dense.blocks))} of {num_units(unit, plan.dense.blocks)} {title}"
    )


def size_name(plan: PrunePlan) -> str:
    """`24 blocks`, `25 blocks less 2 sub-layers`, or `30 narrower blocks`."""
    sublayers = of_kind(plan.transforms, SublayersTransform)
    narrower = "narrower " if of_kind(plan.transforms, WidthsTransform) else ""
    if of_kind(plan.transforms, WeightsTransform):
        narrower += "sparse "
    return f"{plan.size.blocks} {narrower}blocks" + (f" less {len(sublayers.removed)} sub-layers" if sublayers else "")


def protected(scores: UnitScores) -> str:
    """`0–3, 28–29`: blocks of which nothing is removed."""
    num_blocks = len(scores.scores) // num_units(scores.unit, 1)
    return block_ranges(
        [block for block in range(num_blocks) if set(units_of(scores.unit, [block])) <= set(scores.protected)]
    )


def first_line(text: str, limit: int = 100) -> str:
    """The first line of a message that may be a page, cut at `limit` characters."""
    line = text.strip().partition("\n")[0].strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def times(value: float | None) -> str:
    """`1.37 ×`; the space does not break."""
    return MISSING if value is None else f"{value:.2f}\N{NO-BREAK SPACE}×"


def p_value(value: float | None) -> str:
    """`0.03`, `0.0004`, `<1e-6`: one or two digits, which is all that a p says."""
    if value is None:
        return MISSING
    if value < 1e-6:
        return "<1e-6"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}" if value >= 1e-4 else f"{value:.0e}"


def gib(value: float | None) -> str:
    """Bytes in GiB, to three digits."""
    return MISSING if value is None else significant(value / 2**30, 3)
