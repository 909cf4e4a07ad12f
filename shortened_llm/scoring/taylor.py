"""Taylor: first-order estimate of the loss that removing each weight costs."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from shortened_llm.criteria.taylor import TaylorOptions
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.logs import StepLog
from shortened_llm.models.cpu import release_freed_memory
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.vocabulary import loss_gradient
from shortened_llm.models.walk import BlockWalk, sequences_in_memory
from shortened_llm.scoring.weights import block_score, scored_importances, scored_weights

# The backward pass keeps the inner activations of its sequences, about four times what a forward pass holds.
FORWARD_CALLS_PER_BACKWARD = 4


def measure_taylor(
    streamed: StreamedModel,
    tokens: torch.Tensor,
    options: TaylorOptions,
    *,
    memory_gib: float | None,
) -> np.ndarray:
    """Each block's |W * dL/dW|^p, reduced as in `weights.block_score`; [blocks].

    L is the mean next-token cross-entropy over the whole calibration set. The products are summed with their signs
    over it, which is W * (gradient, accumulated in the compute dtype); the absolute value comes last. So the
    calibration set is not cut among tasks or passes: its block inputs stay in memory, and one block at a time is run
    again with gradients, from the last to the first. A block's gradient lives only until it is reduced.

    Cost: two forward passes and one backward pass.

    Args:
        tokens: calibration sequences, [sequences, length], in CPU memory.
        memory_gib: for the blocks' inputs; half of the free memory unless given.

    Raises:
        NonFiniteLossError: naming the sequence or the block.
        BadInputError: the blocks' inputs do not fit into memory.
    """

    def score(block: nn.Module) -> np.ndarray:
        return np.array(block_score(scored_importances(block, _take_product), options))

    return np.array(backward_by_block(streamed, tokens, scored_weights, score, memory_gib=memory_gib))


def backward_by_block(
    streamed: StreamedModel,
    tokens: torch.Tensor,
    weights_of: Callable[[nn.Module], Iterable[nn.Parameter]],
    score: Callable[[nn.Module], np.ndarray],
    *,
    memory_gib: float | None,
    after_sequence: Callable[[nn.Module], None] | None = None,
) -> list[np.ndarray]:
    """What `score` makes of each block, from the first to the last, when the weights that `weights_of` names have the
    gradient of the mean loss over the whole calibration set; see `measure_taylor`, also for what is raised.

    Args:
        after_sequence: called when the gradient of each sequence has been added, each in a pass of its own.
    """
    num_blocks = streamed.num_blocks
    # Besides the inputs: the finished states, and the gradient, in float32 before it is in the compute dtype.
    fitting = sequences_in_memory(streamed, num_blocks + 5, tokens.shape[1], memory_gib)
    if fitting < len(tokens):
        raise BadInputError(
            f"calibration.num_sequences: taylor keeps every block's input for all {len(tokens)} sequences, and memory "
            f"has room for {fitting}; ask for fewer or shorter ones, or raise resources.scoring_memory_gib"
        )
    walk = BlockWalk.of(streamed, tokens.shape[1])
    steps = StepLog(3 * num_blocks)
    inputs = _block_inputs(walk, tokens, steps)
    num_predictions = tokens.shape[0] * (tokens.shape[1] - 1)
    gradient = _last_gradient(walk, inputs[-1], tokens, 1 / num_predictions)
    release_freed_memory()  # of the head's chunks
    scores: dict[int, np.ndarray] = {}
    for index, block in streamed.read_blocks(range(num_blocks - 1, -1, -1)):
        for weight in weights_of(block):
            weight.requires_grad_(True)
            # Each gradient comes as a tensor beside the sum so far, and the heap does not fill the gaps that it leaves.
            weight.register_post_accumulate_grad_hook(lambda _: release_freed_memory())
        _backward_in_place(walk, index, block, inputs[index], gradient, after_sequence)
        scores[index] = score(block)
        if not np.isfinite(scores[index]).all():
            raise NonFiniteLossError(f"taylor: block {index} has score {scores[index]}")
        steps.add(2)  # a forward pass and a backward pass
    return [scores[index] for index in range(num_blocks)]


@torch.no_grad()
def _block_inputs(walk: BlockWalk, tokens: torch.Tensor, steps: StepLog) -> torch.Tensor:
    """Hidden states before each block and after the last, [blocks + 1, sequences, length, hidden]."""
    inputs = walk.new_states(walk.streamed.num_blocks + 1, tokens)
    for index, block in walk.streamed.read_blocks(range(walk.streamed.num_blocks)):
        inputs[index + 1] = inputs[index]
        walk.apply_in_place(index, block, inputs[index + 1])
        steps.add()
    return inputs


def _last_gradient(walk: BlockWalk, outputs: torch.Tensor, tokens: torch.Tensor, scale: float) -> torch.Tensor:
    """Gradient of the loss with respect to the last block's output [sequences, length, hidden]."""
    finished = outputs.clone()
    with torch.no_grad():
        walk.finish_in_place(finished)
        nll, grad_finished = loss_gradient(walk.streamed, finished, tokens, scale)
    del finished
    for sequence, loss in enumerate(nll.tolist()):
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"taylor: the dense model has loss {loss} on calibration sequence {sequence}")
    for part, grad_part in zip(outputs.split(1), grad_finished.split(1), strict=True):
        leaf = part.clone().requires_grad_(True)
        walk.finish(leaf).backward(grad_part)
        grad_part.copy_(_gradient_of(leaf))
    return grad_finished


def _backward_in_place(
    walk: BlockWalk,
    index: int,
    block: nn.Module,
    inputs: torch.Tensor,
    gradient: torch.Tensor,
    after_sequence: Callable[[nn.Module], None] | None,
) -> None:
    """Add to the gradients of the block's weights; `gradient`, of its output, becomes that of its input."""
    size = 1 if after_sequence else max(1, walk.sequences_per_call // FORWARD_CALLS_PER_BACKWARD)
    for part, grad_part in zip(inputs.split(size), gradient.split(size), strict=True):
        leaf = part.clone().requires_grad_(True)
        walk.apply(index, block, leaf).backward(grad_part)
        grad_part.copy_(_gradient_of(leaf))
        if after_sequence:
            after_sequence(block)
        release_freed_memory()


def _take_product(weight: torch.nn.Parameter) -> torch.Tensor:
    """|W * gradient|, in the place of the gradient, which is not needed again."""
    if weight.grad is None:  # an expert that no token was sent to
        return torch.zeros_like(weight)
    gradient, weight.grad = weight.grad, None
    return gradient.mul_(weight.detach()).abs_()


def _gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None, "the output does not depend on its input"
    return leaf.grad
