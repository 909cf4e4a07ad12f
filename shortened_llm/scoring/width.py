"""What criteria of widths are reduced from: statistics of each head's and each channel's inputs, weights, gradients.

The model is read block by block; see `criteria/width/criterion.py` for what each array holds.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from shortened_llm.criteria.width.optimal_brain import OptimalBrainOptions
from shortened_llm.criteria.width.taylor import WidthTaylorOptions
from shortened_llm.errors import BadInputError
from shortened_llm.logs import StepLog
from shortened_llm.models.axes import Axis, Widths, axes_of, widths_of
from shortened_llm.models.moments import Moments, layer_of, observed
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.walk import BlockWalk, sequences_in_memory
from shortened_llm.scoring.one_pass import check_finite
from shortened_llm.scoring.taylor import backward_by_block


def measure_inputs(streamed: StreamedModel, tokens: torch.Tensor, *, memory_gib: float | None) -> np.ndarray:
    """`INPUTS`: what the output projections of the dense model read.

    Cost: one forward pass.

    Args:
        tokens: calibration sequences, [sequences, length], in CPU memory.
        memory_gib: for hidden states; half of the free memory unless given.

    Raises:
        NonFiniteLossError: naming the block.
    """
    outputs = _outputs(streamed)

    def reduce(block: nn.Module, moments: Mapping[str, Moments]) -> np.ndarray:
        found = [
            _statistics(moments[layer_of(output.tensor)], output.as_matrix(block.get_parameter(output.tensor)))
            for output in outputs
        ]
        return np.concatenate(found, axis=1)

    layers = [layer_of(output.tensor) for output in outputs]
    return _from_moments(streamed, tokens, layers, reduce, make=_InputMoments, memory_gib=memory_gib)


def measure_optimal_brain(
    streamed: StreamedModel, tokens: torch.Tensor, options: OptimalBrainOptions, *, memory_gib: float | None
) -> np.ndarray:
    """`OPTIMAL_BRAIN`, of the dense model; arguments, cost and what is raised as in `measure_inputs`.

    Memory: the moments of every two inputs of each layer, of all blocks where the hidden states do not fit at once.
    """
    row = axes_of(streamed.model.config)
    rows, outputs = (*row.group_axes[:-1], *row.channels[:-1]), row.outputs
    # The layers of a part that have rows of its units read the same.
    reads = {
        layer_of(axis.tensor): layer_of(part[0].tensor) for part in (row.group_axes, row.channels) for axis in part[:-1]
    }
    reads |= {layer_of(output.tensor): layer_of(output.tensor) for output in outputs}

    def reduce(block: nn.Module, moments: Mapping[str, Moments]) -> np.ndarray:
        tensors, inverse = dict(block.named_parameters()), {}
        for layer, own in moments.items():
            hessian = 2 * own.count * own.gram(torch.zeros_like(own.mean))
            hessian.diagonal().add_(options.damping * hessian.diagonal().mean().clamp(min=1e-30))
            inverse[layer] = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).diagonal()
        scored = {}
        for axis, of_inputs in (*((axis, 1 - axis.dim) for axis in rows), *((axis, axis.dim) for axis in outputs)):
            weight = tensors.get(axis.tensor)
            if weight is not None and weight.dim() == 2:
                each = inverse[reads[layer_of(axis.tensor)]]
                scored[axis.tensor] = weight.double().square() / (each if of_inputs == 1 else each[:, None])
        return _of_units(scored, streamed, torch.clone)[None]

    layers = list(dict.fromkeys(reads.values()))
    make = partial(Moments, joint=True)
    return _from_moments(streamed, tokens, layers, reduce, make=make, memory_gib=memory_gib)


@torch.inference_mode()
def _from_moments(
    streamed: StreamedModel,
    tokens: torch.Tensor,
    layers: Sequence[str],
    reduce: Callable[[nn.Module, Mapping[str, Moments]], np.ndarray],
    *,
    make: Callable[[], Moments],
    memory_gib: float | None,
) -> np.ndarray:
    """What `reduce` makes of each block and the moments of what its layers read, stacked."""
    walk = BlockWalk.of(streamed, tokens.shape[1])
    batches = tokens.split(sequences_in_memory(streamed, 1, tokens.shape[1], memory_gib))
    steps = StepLog(streamed.num_blocks * len(batches))
    moments = [{layer: make() for layer in layers} for _ in streamed.blocks]
    found: dict[int, np.ndarray] = {}
    for number, batch in enumerate(batches, start=1):
        states = walk.new_states(1, batch)[0]
        for index, block in streamed.read_blocks(range(streamed.num_blocks)):
            with observed(block, moments[index]):
                walk.apply_in_place(index, block, states)
            if number == len(batches):
                found[index] = reduce(block, moments[index])
                moments[index] = {}
            steps.add()
    values = np.stack([found[index] for index in range(streamed.num_blocks)])
    check_finite(values.sum(axis=(1, 2))[None], [f"block {index} reads" for index in range(streamed.num_blocks)], 0)
    return values


class _InputMoments(Moments):
    """Moments, and `PUBLIC_VARIANCE`, of inputs that come by sequences."""

    def __init__(self) -> None:
        super().__init__(joint=False)
        self._sequences = 0
        self._running_mean = torch.zeros(())
        self.public_variance = torch.zeros(())

    def add(self, inputs: torch.Tensor) -> None:
        """Take inputs, [sequences, length, inputs]."""
        super().add(inputs)
        for sequence in inputs.detach().double():
            self._sequences += 1
            number, mean = self._sequences, sequence.mean(dim=0)
            self._running_mean = self._running_mean.to(mean.device) * (number - 1) / number + mean / number
            added = (sequence - self._running_mean).square().sum(dim=0) / number
            before = self.public_variance.to(mean.device) * (number - 2) / max(1, number - 1)
            self.public_variance = before + added if number > 1 else torch.zeros_like(mean)


def _statistics(moments: Moments, weight: torch.Tensor) -> np.ndarray:
    """The rows of `INPUTS`, of a weight [outputs, inputs]."""
    assert isinstance(moments, _InputMoments)
    columns, norm = weight.detach().double(), (moments.squares * moments.count).sqrt()
    found = [
        moments.mean, moments.variance, norm, columns.abs().mean(dim=0), columns.square().sum(dim=0),
        moments.public_variance,
    ]  # fmt: skip
    return torch.stack(found).cpu().numpy()


def _outputs(streamed: StreamedModel) -> tuple[Axis, ...]:
    """The inputs of the output projections of attention and MLP."""
    row = axes_of(streamed.model.config)
    if isinstance(row.groups, str):
        raise BadInputError(
            f"pruning.criteria: the heads of {streamed.model.config.model_type} models cannot be told apart: "
            f"{row.groups}; taylor, magnitude and random do without what their projections read"
        )
    return row.groups[-1], row.channels[-1]


@torch.no_grad()
def measure_weights(streamed: StreamedModel) -> np.ndarray:
    """`WEIGHTS`: sums over the weights of each unit. Cost: no forward pass."""
    found, steps = [], StepLog(streamed.num_blocks)
    for _, block in streamed.read_blocks(range(streamed.num_blocks)):
        tensors = {name: weight.detach() for name, weight in block.named_parameters()}
        found.append([_of_units(tensors, streamed, torch.abs), _of_units(tensors, streamed, torch.square)])
        steps.add()
    return np.array(found)


def _of_units(
    tensors: dict[str, torch.Tensor], streamed: StreamedModel, change: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """The sum over all weights of each unit, of the changed tensors; [groups + channels]."""
    found = [
        torch.stack([change(part).double().sum(dim=1) for part in parts]).sum(dim=0)
        for parts in _parts(tensors, streamed)
    ]
    return torch.cat(found).cpu().numpy()


def _parts(
    tensors: dict[str, torch.Tensor], streamed: StreamedModel, *, is_public: bool = False
) -> tuple[list[torch.Tensor], ...]:
    """What of a block's tensors belongs to groups, and to channels: each part [units, weights of it].

    Args:
        is_public: see `WidthTaylorOptions.gqa_grouping`.
    """
    row, widths = axes_of(streamed.model.config), widths_of(streamed.model.config)
    groups = _sliced(tensors, row.group_axes, widths, widths.groups, is_public=is_public)
    channels = _sliced(tensors, row.channels, widths, widths.channels)
    # Of families whose heads are fixed, and of blocks without a part, there is nothing to add up.
    return (
        groups or [torch.zeros((widths.groups, 1), device=streamed.device)],
        channels or [torch.zeros((widths.channels, 1), device=streamed.device)],
    )


def _sliced(
    tensors: dict[str, torch.Tensor], axes: Sequence[Axis], widths: Widths, units: int, *, is_public: bool = False
) -> list[torch.Tensor]:
    parts = []
    for axis in (axis for axis in axes if axis.tensor in tensors):
        tensor = tensors[axis.tensor].movedim(axis.dim, 0)
        for start, length in axis.segments_of(len(tensor), widths):
            part = tensor[start : start + length]
            heads = units * widths.queries_per_group
            if is_public and length == heads * widths.head_dim:
                part = part.unflatten(0, (widths.queries_per_group, units, -1)).movedim(1, 0)
            parts.append(part.reshape(units, -1))
    return parts


REDUCTIONS = {
    "sum": lambda values: values.sum(dim=0),
    "mean": lambda values: values.mean(dim=0),
    "max": lambda values: values.amax(dim=0),
    "prod": lambda values: values.prod(dim=0),
}


def measure_width_taylor(
    streamed: StreamedModel, tokens: torch.Tensor, options: WidthTaylorOptions, *, memory_gib: float | None
) -> np.ndarray:
    """`TAYLOR`, by the gradient of the loss over the whole calibration set; cost and memory as `measure_taylor`."""
    row = axes_of(streamed.model.config)
    names = {axis.tensor for axis in (*row.group_axes, *row.channels)}

    def weights_of(block: nn.Module) -> list[nn.Parameter]:
        return [weight for name, weight in block.named_parameters() if name in names]

    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}

    def add_square(block: nn.Module) -> None:
        for name, weight in block.named_parameters():
            if name in names and weight.grad is not None:
                sums[name] = sums.get(name, 0) + weight.grad
                squares[name] = squares.get(name, 0) + weight.grad.square()
                weight.grad = None

    def score(block: nn.Module) -> np.ndarray:
        products = {}
        for name, weight in block.named_parameters():
            if name in names:
                gradient, weight.grad = sums.pop(name, weight.grad), None
                products[name] = torch.zeros_like(weight) if gradient is None else gradient.mul_(weight.detach())
                if name in squares:
                    # What a sequence adds is its own mean loss by the number of sequences.
                    products[name] -= weight.detach().square() / 2 * len(tokens) * squares.pop(name)
        found = []
        for parts in _parts(products, streamed, is_public=options.gqa_grouping == "public"):
            if options.importance == "vector":
                each = torch.stack([part.double().sum(dim=1).abs() for part in parts])
            else:
                each = torch.stack([part.abs().double().sum(dim=1) for part in parts])
            found.append(REDUCTIONS[options.reduction](each))
        return torch.cat(found).detach().cpu().numpy()

    each_apart = add_square if options.importance == "mixed" else None
    scores = backward_by_block(streamed, tokens, weights_of, score, memory_gib=memory_gib, after_sequence=each_apart)
    return np.stack(scores)[:, None]
