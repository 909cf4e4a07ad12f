"""How many single weights go."""

from collections.abc import Iterable

from shortened_llm.errors import BadInputError
from shortened_llm.pruning.weight.pattern import Pattern, parse_pattern
from shortened_llm.records import ModelSize, Target

NEAR = 0.005
"""Shares of a model that are one target: a pattern N:M has a share of its own."""


def weight_targets(pattern: str, asked: Iterable[Target], size: ModelSize) -> tuple[Target, ...]:
    """Targets that the weights of the blocks' linear layers can meet by a pattern.

    A pattern N:M says by itself what goes: of weights it has one target, whatever is asked, and of all parameters it
    meets one that is asked or none.

    Raises:
        BadInputError: a target takes all of the weights, or is none that the pattern meets.
    """
    asked = tuple(asked)
    if pattern == "unstructured":
        for target in asked:
            pattern_of(pattern, target, size)
        return asked
    own = parse_pattern(pattern).sparsity
    if not asked or asked[0].of == "weights":
        return (Target(of="weights", ratio=own),)
    share = own * _linear(size) / size.without(()).parameters
    near = tuple(target for target in asked if abs(target.ratio - share) <= NEAR)
    if not near:
        raise BadInputError(
            f"search.ratios: pruning.pattern {pattern} makes {share:.3f} of the parameters zero (search.of: nonzero), "
            f"but asked are {', '.join(str(target.ratio) for target in asked)}; give {share:.3f}"
        )
    return near


def pattern_of(pattern: str, target: Target, size: ModelSize) -> Pattern:
    """The pattern with the share of the blocks' weights that meets a target; raises as `weight_targets`."""
    if pattern != "unstructured":
        return parse_pattern(pattern)
    share = target.ratio if target.of == "weights" else target.ratio * size.without(()).parameters / _linear(size)
    if share >= 1:
        raise BadInputError(
            f"search.ratios: {target.ratio} (search.of: nonzero) asks for more than the {_linear(size):,} weights of "
            "the blocks' linear layers; give a smaller one"
        )
    if share * _linear(size) < 0.5:
        raise BadInputError(
            f"search.ratios: {target.ratio} removes none of the {_linear(size):,} weights of the blocks' linear "
            "layers; give a larger one"
        )
    return parse_pattern(pattern, share)


def _linear(size: ModelSize) -> int:
    if size.linear_parameters is None:
        raise BadInputError(
            "pruning.unit: is 'weight', but the blocks of this architecture have matrices that are no linear layers; "
            "use unit: block"
        )
    return sum(size.linear_parameters)
