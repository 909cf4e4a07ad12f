"""Whether what is removed fits the search and the retraining."""

from collections.abc import Sequence

from shortened_llm.config.pruning import Pruning
from shortened_llm.config.retraining import RetrainingConfig
from shortened_llm.config.search import SearchSection
from shortened_llm.config.text import CalibrationConfig
from shortened_llm.config.width import WidthPruning
from shortened_llm.fields import Range


def _check_weights(prunings: Sequence[Pruning], search: SearchSection, retraining: RetrainingConfig) -> None:
    """What single weights cannot do."""
    if search.of in ("parameters", "bytes"):
        raise ValueError(
            f"search.of is {search.of!r}, but single weights become zero and stay in the files; set search.of to "
            "nonzero, or to blocks for shares of the blocks' weights"
        )
    if isinstance(search.ratios, Range):
        raise ValueError("search.ratios is a range of numbers of blocks, but pruning has the unit weight; list ratios")
    if max(search.rounds) > 1:
        raise ValueError(
            f"search.rounds is {list(search.rounds)}, but single weights go at once; drop rounds, or give pruning of "
            "unit weight a search of its own"
        )
    if "scratch" in search.controls or "random" in search.controls or "scratch" in retraining.methods:
        raise ValueError(
            "pruning.unit is 'weight', for which there are no controls random and scratch; give search.controls: "
            "[dense]"
        )


def check_held_out(prunings: Sequence[Pruning], calibrations: Sequence[CalibrationConfig]) -> None:
    """Check that a refit can hold out calibration text.

    Raises:
        ValueError: naming the field.
    """
    fewest = min(one.num_sequences for one in calibrations)
    if fewest < 2 and any(isinstance(entry, WidthPruning) and entry.refit for entry in prunings):
        raise ValueError(
            f"calibration.num_sequences is {fewest}, but pruning.refit chooses its damping on sequences that it holds "
            "out; give at least 2"
        )


def check_units(prunings: Sequence[Pruning], search: SearchSection, retraining: RetrainingConfig) -> None:
    """Check that ratios mean the same for all entries, and that each entry can do what is asked.

    Raises:
        ValueError: naming the field.
    """
    units, of = dict.fromkeys(entry.unit for entry in prunings), search.of
    if not search.ratios and not search.removed_blocks:
        return  # no size is asked for
    if len(units) > 1 and of == "blocks":
        raise ValueError(
            f"search.of is 'blocks', but pruning has the units {', '.join(units)}, of which equal shares are of "
            f"different sizes; set search.of to {'nonzero' if 'weight' in units else 'parameters'}"
        )
    if "width" in units and of == "blocks":
        raise ValueError("search.of is 'blocks', but pruning has the unit width, which removes none; give parameters")
    if "width" in units and isinstance(search.ratios, Range):
        raise ValueError("search.ratios is a range of numbers of blocks, but pruning has the unit width; list ratios")
    if "width" in units and max(search.rounds) > 1:
        raise ValueError(
            f"search.rounds is {list(search.rounds)}, but heads and channels go at once; drop rounds, or give "
            "pruning of unit width a search of its own"
        )
    is_padded = any(entry.unit == "width" and entry.is_padded for entry in prunings)
    if is_padded and retraining.adapters:
        raise ValueError(
            "pruning.allocation 'global' and protected blocks pad narrow blocks with zeros, but adapters would fill "
            "these; set allocation: uniform without protect_first and protect_last, or drop the methods of retraining "
            "with lora"
        )
    if of == "bytes" and is_padded:
        raise ValueError(
            "search.of is 'bytes', but exports with blocks of different widths (pruning.allocation global, "
            "protect_first, protect_last) are padded to the widest; set search.of to parameters"
        )
    if "weight" in units:
        _check_weights(prunings, search, retraining)
    if len(units) > 1 and isinstance(search.ratios, Range):
        raise ValueError(
            f"search.ratios is a range, of numbers of {' and '.join(units)}s, which have no ratios in common; list "
            "ratios, such as [0.2, 0.4]"
        )
    if "sublayer" in units and of == "bytes":
        raise ValueError(
            "search.of is 'bytes', but plain exports hold zeros in the place of sub-layers and save none; set "
            "search.of to parameters"
        )
    if units.keys() != {"block"} and search.removed_blocks:
        raise ValueError(
            f"search.removed_blocks is {list(search.removed_blocks)}, but pruning has the units "
            f"{', '.join(units)}; give search.ratios"
        )
