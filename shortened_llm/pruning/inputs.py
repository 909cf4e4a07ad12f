"""What the blocks of a model read of the calibration text, one behind the other: the frame of layer-wise methods."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.models.moments import Moments, observed
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.walk import BlockWalk, sequences_in_memory


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """The hidden states in front of a block, of all calibration sequences."""

    walk: BlockWalk
    states: torch.Tensor
    """[sequences, length, hidden]; those in front of the next block once a block has been passed."""

    @classmethod
    def of(
        cls, streamed: StreamedModel, tokens: torch.Tensor, *, memory_gib: float | None, reader: str
    ) -> "BlockInputs":
        """Those in front of block 0.

        Args:
            tokens: calibration sequences, [sequences, length], in CPU memory.
            memory_gib: for them; half of the free memory unless given.
            reader: what wants them, for messages.

        Raises:
            BadInputError: the model cannot be walked block by block, or memory has no room for them.
        """
        fitting = sequences_in_memory(streamed, 1, tokens.shape[1], memory_gib)
        if fitting < len(tokens):
            raise BadInputError(
                f"calibration.num_sequences: {reader} keep the hidden states of all {len(tokens)} sequences, and "
                f"memory has room for {fitting}; ask for fewer or shorter ones, or raise resources.scoring_memory_gib"
            )
        walk = BlockWalk.of(streamed, tokens.shape[1])
        return cls(walk, walk.new_states(1, tokens)[0])

    def observe(
        self,
        index: int,
        block: nn.Module,
        layers: Iterable[str],
        *,
        joint: bool,
        within: bool = False,
        part: slice = slice(None),
    ) -> dict[str, Moments]:
        """Moments of what some layers of a block read, by their names in it.

        Args:
            joint: of every two inputs.
            within: with the variances within sequences.
            part: of the sequences.
        """
        moments = {layer: Moments(joint=joint, within=within) for layer in layers}
        states = self.states[part]
        with observed(block, moments):
            for sequences in states.split(self.walk.sequences_per_call) if moments and len(states) else ():
                self.walk.apply(index, block, sequences)
        return moments

    def pass_through(self, index: int, block: nn.Module) -> None:
        """Replace the states by the block's output.

        Raises:
            NonFiniteLossError: they are not finite.
        """
        self.walk.apply_in_place(index, block, self.states)
        if not self.states.isfinite().all():
            raise NonFiniteLossError(f"block {index} gives numbers that are not finite once it is pruned")
