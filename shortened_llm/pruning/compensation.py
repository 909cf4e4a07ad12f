"""Output projections that make up for the heads and channels that are gone, as far as linear layers can.

Blocks are done one after another. A whole block reads what the compensated blocks before it give; from what its output
projections read there, their new weights and biases follow, and the block goes on as it is then. One block is in memory
beside the hidden states and the moments of its inputs.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from shortened_llm.config import CalibrationConfig, Refit
from shortened_llm.data.calibration import calibration_identity
from shortened_llm.data.sources import Documents
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER, StepLog
from shortened_llm.models.axes import NOTHING, Axis, axes_of
from shortened_llm.models.biases import Biases, biases_of
from shortened_llm.models.calibration import model_tokens
from shortened_llm.models.files import TensorHeader, block_prefix
from shortened_llm.models.moments import Moments, layer_of
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.view import view_config, view_files
from shortened_llm.models.write import torch_dtype
from shortened_llm.pruning.inputs import BlockInputs
from shortened_llm.pruning.refit import refit
from shortened_llm.pruning.work import uploaded
from shortened_llm.records import ModelRef, TensorsTransform, Transform, WidthsTransform, kept_blocks
from shortened_llm.storage.layout import COMPENSATIONS
from shortened_llm.storage.payload import has_files
from shortened_llm.storage.store import Store

STAGE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CompensationJob:
    """A narrowed model, and how it is compensated."""

    model: ModelRef
    transforms: tuple[Transform, ...]
    """The plan, which removes heads and channels among other things."""
    refit: Refit | None
    """How weights are computed; None: they stay."""
    bias: bool
    """Whether the projections get biases, where the family knows any."""
    documents: Documents
    calibration: CalibrationConfig
    dtype: str
    """Compute type of the pass."""

    @property
    def narrowed(self) -> ModelRef:
        """What is compensated."""
        return self.model.view(self.transforms)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, object]:
        """All that the new tensors depend on."""
        return {
            "stage": STAGE_VERSION,
            "model": self.narrowed.identity,
            "refit": self.refit.model_dump() if self.refit else None,
            "bias": self.bias,
            "dtype": self.dtype,
            "calibration": calibration_identity(self.documents, self.calibration)
            | {"num_sequences": self.calibration.num_sequences},
        }

    @property
    def title(self) -> str:
        return "compensate"

    def stored(self, store: Store) -> TensorsTransform | None:
        """How the new tensors are loaded, where they are stored."""
        found = store.read(COMPENSATIONS, self.fingerprint, TensorsTransform)
        return found if found and found.payload and has_files(found.payload) else None

    def compute(self, store: Store, *, device: str, memory_gib: float | None) -> None:
        """Compute the new tensors and store them, unless they are stored.

        Args:
            memory_gib: for the hidden states; half of the free memory unless given.

        Raises:
            BadInputError: the model cannot be walked block by block, the text does not give the sequences, or memory
                has no room for them.
        """
        if self.stored(store):
            return
        LOGGER.info("reading the model")
        rest = tuple(one for one in self.transforms if not isinstance(one, WidthsTransform))
        streamed = StreamedModel.open(self.model.view(rest), self.dtype, device=device)
        tokens = model_tokens(self.model, streamed, self.documents, self.calibration)
        projections = Projections.of(self.narrowed, refits=self.refit is not None, bias=self.bias)
        chosen: Counter[float | None] = Counter()
        new = compensated(streamed, tokens, projections, self.refit, memory_gib=memory_gib, chosen=chosen)
        payload = uploaded(new, projections.layout, store.attempt_url(COMPENSATIONS, self.fingerprint))
        if self.refit:
            LOGGER.info("refitted %s", _counted(chosen))
        done = {"refitted output projections": self.refit, "biases for what is gone": projections.biases.layers}
        kept = kept_blocks(self.transforms, self.model.num_blocks)
        transform = TensorsTransform(
            fingerprint=self.fingerprint,
            words=" and ".join(words for words, is_done in done.items() if is_done),
            blocks=tuple((kept[index], index) for index in projections.blocks if projections.shapes(index)),
            config_fields=projections.biases.fields,
            added=sum(shape.numel() for shape in projections.biases.added.values()),
            payload=payload,
        )
        store.write(COMPENSATIONS, self.fingerprint, transform, identity=self.identity, parents=self.model.parents)


def _counted(chosen: Counter[float | None]) -> str:
    """`28 of 30 projections: 20 with damping 1, 8 with damping 10`"""
    numbers = {damping: number for damping, number in chosen.items() if damping is not None}
    words = [f"{numbers[damping]} with damping {damping:g}" for damping in sorted(numbers)]
    return f"{sum(numbers.values())} of {chosen.total()} projections: {', '.join(words) or 'none was better held out'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Projections:
    """What becomes of the output projections of a narrowed model."""

    cut: Mapping[tuple[int, Axis], TensorHeader]
    """Those that lose inputs, by the block of the narrowed model: what it has of the weight in the files."""
    blocks: tuple[int, ...]
    refits: bool
    biases: Biases
    dtype: torch.dtype

    @classmethod
    def of(cls, narrowed: ModelRef, *, refits: bool, bias: bool) -> "Projections":
        """Those of a narrowed model.

        Args:
            refits: whether they get other weights.
            bias: whether they get biases, where the family knows any.
        """
        config, files = view_config(narrowed), view_files(narrowed)
        blocks, prefix = range(config.num_hidden_layers), block_prefix(files.of, config.num_hidden_layers)
        found = {
            (block, output): header
            for block, output in product(blocks, axes_of(config).outputs)
            if (header := files.of.get(f"{prefix}.{block}.{output.tensor}"))
        }
        cut = {place: header for place, header in found.items() if header.selection}
        layers = {layer_of(output.tensor) for _, output in cut} if bias else set()
        return cls(
            cut=cut,
            blocks=tuple(blocks),
            refits=refits,
            biases=biases_of(config, layers),
            dtype=torch_dtype(next(iter(found.values())).dtype),
        )

    def cut_in(self, block: int) -> dict[Axis, TensorHeader]:
        """Those of a block that lose inputs."""
        return {axis: header for (index, axis), header in self.cut.items() if index == block}

    def shapes(self, block: int) -> dict[str, tuple[int, ...]]:
        """The new tensors of a block, by their names in it."""
        found: dict[str, tuple[int, ...]] = {}
        for output, header in self.cut_in(block).items():
            if self.refits:
                found[output.tensor] = header.shape
            if (layer := layer_of(output.tensor)) in self.biases.layers:
                found[f"{layer}.bias"] = (header.shape[1 - output.dim],)
        return {**found, **self.biases.added}

    @property
    def layout(self) -> dict[str, torch.Tensor]:
        """The new tensors on the meta device, by `<block>.<name in it>`, block after block."""
        return {
            f"{block}.{name}": torch.empty(shape, dtype=self.dtype, device="meta")
            for block in self.blocks
            for name, shape in self.shapes(block).items()
        }


@torch.no_grad()
def compensated(
    streamed: StreamedModel,
    tokens: torch.Tensor,
    projections: Projections,
    options: Refit | None,
    *,
    memory_gib: float | None,
    chosen: Counter[float | None],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The new tensors in the order of the layout; see `CompensationJob.compute`.

    Args:
        streamed: the model with whole blocks.
        tokens: calibration sequences, [sequences, length], in CPU memory.
        chosen: counts the projections of each damping; None: of those that stay as they were.
    """
    inputs = BlockInputs.of(streamed, tokens, memory_gib=memory_gib, reader="refit and bias")
    steps = StepLog(streamed.num_blocks)
    # Moments of both parts and of all follow from those of the two.
    num_seen = len(tokens) - (options.num_held_out(len(tokens)) if options else 0)
    for index, block in streamed.read_blocks(range(streamed.num_blocks)):
        cut = projections.cut_in(index)
        layers = [layer_of(output.tensor) for output in cut]
        seen, held_out = (
            inputs.observe(index, block, layers, joint=options is not None, part=part)
            for part in (slice(num_seen), slice(num_seen, None))
        )
        new = {name: torch.zeros(shape) for name, shape in projections.shapes(index).items()}
        for output, header in cut.items():
            layer = layer_of(output.tensor)
            of_layer, damping = _compensate_layer(
                block.get_submodule(layer), output, header, (seen[layer], held_out[layer]), options,
                has_bias=layer in projections.biases.layers,
            )  # fmt: skip
            chosen[damping] += 1
            new |= {f"{layer}.{name}": tensor for name, tensor in of_layer.items() if f"{layer}.{name}" in new}
        inputs.pass_through(index, block)
        for name in projections.shapes(index):
            yield f"{index}.{name}", new[name]
        steps.add()


def _compensate_layer(
    layer: nn.Module,
    output: Axis,
    header: TensorHeader,
    moments: tuple[Moments, Moments],
    options: Refit | None,
    *,
    has_bias: bool,
) -> tuple[dict[str, torch.Tensor], float | None]:
    """Take removed inputs away from a layer, in place, and return its `weight` and `bias` as the narrowed model has
    them, and the damping of the fit."""
    whole: torch.Tensor = layer.get_parameter("weight")
    weight = output.as_matrix(whole).double()
    positions = torch.tensor(header.selection[0][1], device=weight.device)
    kept, every = positions[positions != NOTHING], moments[0].with_others(moments[1])
    narrow, damping = weight[:, kept], None
    if options is not None:
        # What a bias takes care of is no concern of the weights.
        centre = every.mean if has_bias else torch.zeros_like(every.mean)
        fit = refit(
            weight, kept, seen=moments[0].gram(centre), held_out=moments[1].gram(centre), every=every.gram(centre),
            dampings=options.damping,
        )  # fmt: skip
        narrow, damping = fit.weight, fit.damping
    masked, padded = torch.zeros_like(weight), weight.new_zeros((len(weight), len(positions)))
    masked[:, kept], padded[:, positions != NOTHING] = narrow, narrow
    whole.copy_(output.as_matrix(masked))
    found = {"weight": output.as_matrix(padded)}
    if has_bias:
        found["bias"] = weight @ every.mean - narrow @ every.mean[kept]
        if isinstance(layer.bias, torch.Tensor):
            found["bias"] += layer.bias
        layer.bias = nn.Parameter(found["bias"].to(whole.dtype), requires_grad=False)
    return found, damping
