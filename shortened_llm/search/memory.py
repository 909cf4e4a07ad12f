"""Peak GPU memory of each kind of process, estimated from shapes before any model is loaded.

Training, with P weights, T of them trained, c bytes of the compute type, s workers that share a copy of the model:

- weights and AdamW: 12 T / s (float32 and two moments) + c (P - T) / s; none with `cpu_offload`;
- gradients: 4 T / s, or 4 T where a step has several micro-batches, since FSDP2 keeps them whole between these;
- gathered weights: c P where they stay gathered (`sharding.gathers_once`), else the root's and two blocks';
- activations of a block, compiled: c x tokens x (its weights / hidden + 4 hidden), the outputs of its matrices and what
  these read; of every block, or with `activation_checkpointing` of one, beside c x tokens x hidden of each;
- logits: four chunks in float32 (`head.chunk_tokens`), and the head's gradient in float32;
- a teacher: c P / s, what is gathered of it, and two chunks;
- where single weights were pruned: T / s, a byte that says whether a weight is zero.

Beside the figures of retraining/README.md (one H200, 1.5 B parameters, all trained): 39.4 against 40.0 GiB measured,
48.7 against 49.4, 29.3 against 28.9 with activations recomputed.

Evaluation: c P / GPUs, one block's activations, three chunks of logits in float32, and the dense model's head where
agreement is measured. Caches of generation and the logits of tasks come on top, and batches give way to them.

Scoring (scoring/README.md): two blocks, one gradient of a block for Taylor, hidden states of the calibration before and
behind each block, and tiles of logits; for optimal brain, in fp64, the products of every two inputs of a block's layers
and work space for one layer. On one H200, 8 B parameters in 32 blocks, 10 x 128 tokens: 2.4 against 2.4 GiB
measured for perplexity, 1.7 against 1.8 for Taylor.

Passes that prune single weights, or compensate, block after block: two blocks, the hidden states once, and in fp64 the
weights of a block before and after, the products of every two inputs of its layers, and work space for one layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from shortened_llm.config import ExperimentConfig, ResourcesConfig, RetrainingConfig, WeightPruning
from shortened_llm.criteria.criterion import Criterion
from shortened_llm.criteria.weight.criterion import WeightCriterion
from shortened_llm.criteria.weight.refinement import REFINERS
from shortened_llm.criteria.width.criterion import OPTIMAL_BRAIN, TAYLOR, WidthCriterion
from shortened_llm.models.axes import axes_of
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import DTYPES
from shortened_llm.models.flops import active_share
from shortened_llm.models.head import CHUNK_TOKENS, MOST_LOGIT_BYTES
from shortened_llm.models.linears import as_matrix, linear_layers
from shortened_llm.models.vocabulary import TILE_TOKENS, TILE_VOCABULARY
from shortened_llm.records import Recipe
from shortened_llm.retraining.sharding import RESIDENT_SHARE

GIB = 2**30
STUDENT_CHUNKS, TEACHER_CHUNKS, EVALUATION_CHUNKS = 4, 2, 3
"""Chunks of logits in float32 that are alive at a time."""
TILES = 2.5
"""Tiles of logits in float32 that are alive while the vocabulary is walked."""
SQUARES_OF_A_LAYER, COPIES_OF_A_LAYER = 4, 3
"""In fp64, while a layer is pruned: products of its inputs and what is made of them, and its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """What one process holds at a time on each of its GPUs, in bytes."""

    lasting: float
    """Weights, or shards of weights, optimiser state and gradients: only more GPUs or `cpu_offload` make it less."""
    passing: float
    """Gathered weights, activations, logits."""

    @property
    def peak(self) -> float:
        return self.lasting + self.passing


def gpu_share(memory: float, gpus: float) -> float:
    """What a process has of the memory of a GPU, in bytes: of a fraction of one its share."""
    return min(1.0, gpus) * memory


def worker_memory(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    recipe: Recipe,
    placement: RetrainingConfig,
    resources: ResourcesConfig,
    *,
    dtype: str,
    memory: float | None,
    holds_zeros: bool = False,
) -> ProcessMemory:
    """The memory of a worker where a trial has the fewest.

    Args:
        student, teacher: without weights, with what is trained marked, as `estimate.Shapes` makes them.
        memory: of a GPU, in bytes, where it is known; says which weights stay gathered.
        holds_zeros: whether single weights of the student were pruned.
    """
    shards = resources.shard_group or resources.min_workers
    width, tokens = DTYPES[dtype].itemsize, placement.micro_batch_size * recipe.sequence_length
    several = recipe.global_batch_size > placement.micro_batch_size * resources.min_workers
    trained = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    frozen = _num_parameters(student) - trained
    state = 0.0 if placement.cpu_offload else (12 * trained + width * frozen) / shards
    gradients = 0.0 if placement.cpu_offload else 4 * trained / shards
    head = student.get_output_embeddings().weight
    chunk = 4.0 * min(tokens, _chunk_tokens(len(head), memory)) * len(head)
    passing = _gathered(student, width, memory) + STUDENT_CHUNKS * chunk
    passing += max(0.0, 4 * trained - gradients) if several else 0.0
    passing += 4.0 * head.numel() * head.requires_grad
    passing += _activations(student, width * tokens, recomputed=float(placement.activation_checkpointing))
    state += trained / shards if holds_zeros and not placement.cpu_offload else 0.0
    if teacher is not None:
        state += width * _num_parameters(teacher) / shards
        passing += _gathered(teacher, width, memory) + TEACHER_CHUNKS * chunk
    return ProcessMemory(lasting=state + gradients, passing=passing)


def evaluator_memory(dense: PreTrainedModel, config: ExperimentConfig, *, memory: float | None) -> ProcessMemory:
    """The memory of an evaluator on each of its GPUs, with the dense model, the largest that it loads.

    Args:
        dense: without weights.
        memory: of a GPU, in bytes, where it is known.
    """
    width, evaluation = DTYPES[config.model.dtype].itemsize, config.evaluation
    texts = (*evaluation.selection.perplexity, *evaluation.report.perplexity, *evaluation.report.agreement)
    tokens = evaluation.batch_size * max((text.segment_length for text in texts), default=0)
    head = dense.get_output_embeddings().weight
    passing = EVALUATION_CHUNKS * 4.0 * min(tokens, _chunk_tokens(len(head), memory)) * len(head)
    passing += _activations(dense, width * tokens, recomputed=1.0)
    passing += width * head.numel() if evaluation.report.agreement else 0.0
    gpus = max(1.0, config.resources.gpus_per_evaluator)
    return ProcessMemory(lasting=width * _num_parameters(dense) / gpus, passing=passing)


def scorer_memory(dense: PreTrainedModel, config: ExperimentConfig, *, memory: float | None) -> ProcessMemory:
    """The memory of a scoring task, by the criterion that takes most.

    Args:
        dense: without weights.
        memory: of a GPU, in bytes, where it is known.
    """
    tokens = max((text.num_sequences * text.sequence_length for text in config.calibrations), default=0)
    found = []
    for entry in config.prunings:
        if isinstance(entry, WeightPruning) or entry.compensates:
            rows = [entry.rows[criterion] for criterion in entry.criteria]
            is_joint = entry.compensates or any(isinstance(row, WeightCriterion) and row.joint for row in rows)
            refiner = REFINERS.get(entry.refine) if isinstance(entry, WeightPruning) else None
            found.append(
                layerwise_memory(
                    dense, DTYPES[entry.dtype].itemsize, tokens, is_joint=is_joint,
                    takes_gradients=refiner is not None and refiner.takes_gradients,
                )
            )  # fmt: skip
        if not isinstance(entry, WeightPruning):
            found += [_of_criterion(dense, entry.rows[criterion], config, memory) for criterion in entry.criteria]
    return max(found, key=lambda one: one.peak)


def layerwise_memory(
    dense: PreTrainedModel, width: int, tokens: int, *, is_joint: bool, takes_gradients: bool = False
) -> ProcessMemory:
    """The memory of a pass that prunes or compensates block after block.

    Args:
        dense: without weights.
        width: bytes of a number of the compute type.
        tokens: of the calibration text.
        is_joint: whether it holds the products of every two inputs of a layer.
        takes_gradients: whether a block's weights get some: whole, pruned, their gradients, and squares of these.
    """
    block = max(find_blocks(dense), key=_num_parameters)
    matrices = [as_matrix(layer, layer.get_parameter("weight")) for layer in linear_layers(block).values()]
    inputs, largest = [matrix.shape[1] for matrix in matrices], max(matrix.numel() for matrix in matrices)
    whole_and_pruned = 2 * sum(matrix.numel() for matrix in matrices)
    moments = _of_products(inputs) if is_joint else sum(inputs)
    states = width * tokens * dense.config.hidden_size
    gradients = 2.0 * (width + 4) * _num_parameters(block) if takes_gradients else 0.0
    return ProcessMemory(
        lasting=2.0 * width * _num_parameters(block) + states,
        passing=8.0 * (whole_and_pruned + moments + COPIES_OF_A_LAYER * largest) + gradients,
    )


def _of_criterion(
    dense: PreTrainedModel,
    criterion: Criterion | WidthCriterion,
    config: ExperimentConfig,
    memory: float | None,
) -> ProcessMemory:
    width, blocks = DTYPES[config.model.dtype].itemsize, [_num_parameters(block) for block in find_blocks(dense)]
    takes_gradients = criterion.measured in ("taylor", TAYLOR)
    weights = width * max(blocks) * (3.0 if takes_gradients else 2.0)
    if not criterion.reads_text:
        return ProcessMemory(lasting=weights, passing=0.0)
    tokens = max(text.num_sequences * text.sequence_length for text in config.calibrations)
    states = (len(blocks) + 2.0) * tokens * dense.config.hidden_size * width
    limit, free = config.resources.scoring_memory_gib, memory - weights if memory else None
    allowed = limit * GIB if limit is not None else free / 2 if free is not None else states
    predicted = tokens if takes_gradients else tokens * len(blocks)  # by the head: with each block left out
    tile = 4.0 * TILE_VOCABULARY["cuda"] * min(predicted, TILE_TOKENS["cuda"])
    passing = min(states, allowed) + TILES * tile
    if criterion.measured == OPTIMAL_BRAIN:
        row, of_block = axes_of(dense.config), dict(find_blocks(dense)[0].named_parameters())
        read = {part[0].tensor: 1 - part[0].dim for part in (row.group_axes, row.channels) if len(part) > 1}
        read |= {output.tensor: output.dim for output in row.outputs}
        passing += 8.0 * _of_products([of_block[name].shape[dim] for name, dim in read.items() if name in of_block])
    return ProcessMemory(lasting=weights, passing=passing)


def _of_products(inputs: Sequence[int]) -> int:
    """Numbers that products of every two inputs take, of layers with so many, and what is made of the largest's."""
    return sum(size**2 for size in inputs) + SQUARES_OF_A_LAYER * max(inputs, default=0) ** 2


def _num_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _chunk_tokens(vocabulary: int, memory: float | None) -> int:
    """What `head.chunk_tokens` is on a GPU of this memory."""
    most = min(MOST_LOGIT_BYTES, memory // 64) if memory else MOST_LOGIT_BYTES
    return max(1, int(most // (4 * vocabulary * CHUNK_TOKENS))) * CHUNK_TOKENS


def _gathered(model: PreTrainedModel, width: int, memory: float | None) -> float:
    """Whole weights at a time, in bytes."""
    blocks = [_num_parameters(block) for block in find_blocks(model)]
    parameters = _num_parameters(model)
    if memory is None or width * parameters < RESIDENT_SHARE * memory:  # as on CPU
        return float(width * parameters)
    return float(width * (parameters - sum(blocks) + 2 * max(blocks)))


def _activations(model: PreTrainedModel, bytes_of_each: int, *, recomputed: float) -> float:
    """What the backward pass reads, in bytes.

    Args:
        bytes_of_each: of one number for each token of a micro-batch.
        recomputed: share of the blocks that keep their input alone.
    """
    hidden = model.config.hidden_size
    of_blocks = []
    for block in find_blocks(model):
        matrices = (weight for weight in block.parameters() if weight.dim() >= 2)
        multiplied = sum(weight.numel() * active_share(model.config, weight) for weight in matrices)
        of_blocks.append(bytes_of_each * (multiplied / hidden + 4 * hidden))
    inputs = len(of_blocks) * bytes_of_each * hidden
    return (1 - recomputed) * sum(of_blocks) + recomputed * inputs + max(of_blocks) * (recomputed > 0)
