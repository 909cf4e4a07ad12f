"""Single weights go block by block: each block is pruned by what it reads behind the pruned ones.

One block is in memory beside the hidden states of the calibration text and the moments of the block's inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shortened_llm.config import AlphaOptions, CalibrationConfig, JointRefit
from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.weight import WEIGHT_CRITERIA
from shortened_llm.data.calibration import calibration_identity
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER, StepLog
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.calibration import model_tokens
from shortened_llm.models.files import TensorHeader, block_prefix
from shortened_llm.models.linears import as_matrix, linear_layers
from shortened_llm.models.moments import Moments, observed
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.transforms.weights import KEPT, packed_mask
from shortened_llm.models.view import empty_view, view_files
from shortened_llm.models.walk import BlockWalk, sequences_in_memory
from shortened_llm.models.write import WeightWriter, torch_dtype
from shortened_llm.pruning.weight.allocation import allocated, spectral_exponent
from shortened_llm.pruning.weight.joint import joint_update
from shortened_llm.pruning.weight.masks import MASKERS, Layer
from shortened_llm.pruning.weight.pattern import Pattern
from shortened_llm.records import ModelRef, Payload, Transform, WeightsTransform, kept_blocks
from shortened_llm.storage.layout import MASKS
from shortened_llm.storage.payload import has_files, upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store

STAGE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsJob:
    """A model, and which of its weights become zero."""

    model: ModelRef
    transforms: tuple[Transform, ...]
    """Other transforms of the plan, done before."""
    criterion: str
    options: CriterionOptions
    pattern: Pattern
    pattern_name: str
    alpha: AlphaOptions | None = None
    """How the share of each block follows from its spectra; None where it is that of the pattern."""
    refit: JointRefit | None = None
    """How the weights that stay are computed; None: as the criterion does."""
    documents: Documents | None
    """Where text is read."""
    calibration: CalibrationConfig
    dtype: str
    """Compute type of the pass."""

    @property
    def reads_text(self) -> bool:
        return WEIGHT_CRITERIA[self.criterion].reads_text or self.refit is not None

    @property
    def changes_weights(self) -> bool:
        """Whether the weights that stay become others."""
        return WEIGHT_CRITERIA[self.criterion].changes_weights or self.refit is not None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, object]:
        """All that the masks and weights depend on."""
        text = calibration_identity(self.documents, self.calibration) if self.reads_text else None
        return {
            "stage": STAGE_VERSION,
            "model": self.model.view(self.transforms).identity,
            "criterion": self.criterion,
            "options": self.options.model_dump(),
            "pattern": self.pattern,
            "refit": self.refit.model_dump() if self.refit else None,
            "alpha": self.alpha.model_dump() if self.alpha else None,
            "dtype": self.dtype,
            "calibration": text and text | {"num_sequences": self.calibration.num_sequences},
        }

    @property
    def title(self) -> str:
        return "prune weights"

    def stored(self, store: Store) -> WeightsTransform | None:
        """How what was computed is loaded, where it is stored."""
        found = store.read(MASKS, self.fingerprint, WeightsTransform)
        return found if found and found.payload and has_files(found.payload) else None

    def compute(self, store: Store, *, device: str, memory_gib: float | None) -> None:
        """Prune and store, unless it is stored.

        Args:
            memory_gib: for the hidden states; half of the free memory unless given.

        Raises:
            BadInputError: the model cannot be walked block by block, the pattern does not fit a layer, the text does
                not give the sequences, or memory has no room for them.
        """
        if self.stored(store):
            return
        LOGGER.info("reading the model")
        base = self.model.view(self.transforms)
        streamed = StreamedModel.open(base, self.dtype, device=device)
        url = store.attempt_url(MASKS, self.fingerprint)
        zeros: list[int] = []
        layout = _layout(base, changes=self.changes_weights)
        with temporary_directory() as temporary:
            writer = WeightWriter(layout, Path(temporary), on_file=lambda _: None)
            tokens, shares = self._tokens(streamed), self._shares(streamed)
            for index, tensors, number in pruned_blocks(streamed, tokens, self, shares, memory_gib=memory_gib):
                zeros.append(number)
                for name, tensor in tensors.items():
                    writer.add(f"{index}.{name}", tensor)
            writer.close()
            payload = Payload(url=url, files=upload_directory(Path(temporary), url))
        names = [
            self.pattern_name,
            self.criterion,
            *(["alpha"] if self.alpha else []),
            *(["refitted"] if self.refit else []),
        ]
        kept, share = kept_blocks(self.transforms, self.model.num_blocks), 100 * self.pattern.sparsity
        transform = WeightsTransform(
            fingerprint=self.fingerprint,
            words=f"{share:.3g} % of the blocks' weights zero ({', '.join(names)})",
            blocks=tuple((block, index) for index, block in enumerate(kept)),
            zeros=tuple(zeros),
            layers=tuple(linear_layers(find_blocks(empty_view(base))[0])),
            payload=payload,
        )
        store.write(MASKS, self.fingerprint, transform, identity=self.identity, parents=base.parents)

    def _shares(self, streamed: StreamedModel) -> tuple[float, ...]:
        """The share of each block's weights that goes."""
        number = streamed.num_blocks
        if self.alpha is None:
            return (self.pattern.sparsity,) * number
        LOGGER.info("reading the spectra")
        qualities, sizes, steps = [], [], StepLog(number)
        for _, block in streamed.read_blocks(range(number)):
            weights = [layer.get_parameter("weight").detach() for layer in linear_layers(block).values()]
            exponents = [spectral_exponent(weight, self.alpha.estimator) for weight in weights]
            qualities.append(sum(exponents) / len(exponents))
            sizes.append(sum(weight.numel() for weight in weights))
            steps.add()
        found = allocated(qualities, sizes, self.pattern.sparsity, self.alpha.epsilon)
        LOGGER.info("shares of the blocks' weights that go: %s", " ".join(f"{share:.2f}" for share in found))
        return found

    def _tokens(self, streamed: StreamedModel) -> torch.Tensor | None:
        if not self.reads_text:
            return None
        assert self.documents is not None, f"{self.criterion} reads text"
        return model_tokens(self.model, streamed, self.documents, self.calibration)


def _layout(base: ModelRef, *, changes: bool) -> dict[str, torch.Tensor]:
    """What is stored, on the meta device, block after block: masks, or the changed weights with zeros in them."""
    model, files = empty_view(base), view_files(base)
    prefix = block_prefix(files.of, model.config.num_hidden_layers)
    found = {}
    for index, block in enumerate(find_blocks(model)):
        for layer in linear_layers(block):
            header: TensorHeader = files.of[f"{prefix}.{index}.{layer}.weight"]
            if changes:
                tensor = torch.empty(header.shape, dtype=torch_dtype(header.dtype), device="meta")
                found[f"{index}.{layer}.weight"] = tensor
            else:
                number = -(-torch.Size(header.shape).numel() // 8)
                found[f"{index}.{layer}.weight{KEPT}"] = torch.empty(number, dtype=torch.uint8, device="meta")
    return found


@torch.no_grad()
def pruned_blocks(
    streamed: StreamedModel,
    tokens: torch.Tensor | None,
    job: WeightsJob,
    shares: Sequence[float],
    *,
    memory_gib: float | None,
) -> Iterator[tuple[int, Mapping[str, torch.Tensor], int]]:
    """Each block's tensors by their names in the layout, and how many of its weights are zero; see `WeightsJob`.

    Args:
        tokens: calibration sequences, [sequences, length], in CPU memory; None where the criterion reads none.
        shares: of each block's weights, what goes.
    """
    is_joint, steps = WEIGHT_CRITERIA[job.criterion].joint or job.refit is not None, StepLog(streamed.num_blocks)
    walk: BlockWalk | None = None
    if tokens is not None:
        fitting = sequences_in_memory(streamed, 1, tokens.shape[1], memory_gib)
        if fitting < len(tokens):
            raise BadInputError(
                f"calibration.num_sequences: single weights keep the hidden states of all {len(tokens)} sequences, and "
                f"memory has room for {fitting}; ask for fewer or shorter ones, or raise resources.scoring_memory_gib"
            )
        walk = BlockWalk.of(streamed, tokens.shape[1])
        states = walk.new_states(1, tokens)[0]
    for index, block in streamed.read_blocks(range(streamed.num_blocks)):
        layers = linear_layers(block)
        moments = {name: Moments(joint=is_joint) for name in layers}
        if walk is not None:
            with observed(block, moments):
                for sequences in states.split(walk.sequences_per_call):
                    walk.apply(index, block, sequences)
        found, zeros = {}, 0
        for name, layer in layers.items():
            whole = layer.get_parameter("weight")
            weight = as_matrix(layer, whole).double()
            job.pattern.check(weight.shape[1], name)
            pattern = replace(job.pattern, sparsity=shares[index])
            given = Layer(
                weight=weight,
                moments=moments[name] if walk is not None else None,
                num_sequences=0 if tokens is None else len(tokens),
                pattern=pattern,
                options=job.options,
            )
            new, kept = MASKERS[job.criterion](given)
            if job.refit:
                new = joint_update(weight, kept, given.hessian, damping=job.refit.damping)
            whole.copy_(as_matrix(layer, new))
            zeros += int((~kept).sum())
            if job.changes_weights:
                found[f"{name}.weight"] = as_matrix(layer, new)
            else:
                found[f"{name}.weight{KEPT}"] = packed_mask(as_matrix(layer, kept))
        if walk is not None:
            walk.apply_in_place(index, block, states)
            if not states.isfinite().all():
                raise NonFiniteLossError(f"block {index} gives numbers that are not finite once it is pruned")
        yield index, found, zeros
        steps.add()
