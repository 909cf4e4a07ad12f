"""Single weights of a plan: masks, or changed weights, computed once and stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from shortened_llm.config import CalibrationConfig
from shortened_llm.data.calibration import calibration_identity
from shortened_llm.data.sources import Documents
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.calibration import model_tokens
from shortened_llm.models.files import TensorHeader, block_prefix
from shortened_llm.models.linears import as_matrix, linear_inputs, linear_layers
from shortened_llm.models.stream import StreamedModel
from shortened_llm.models.transforms.weights import KEPT, packed_mask
from shortened_llm.models.view import empty_view, view_files
from shortened_llm.models.write import torch_dtype
from shortened_llm.pruning.weight.layerwise import PrunedBlock, pruned_blocks
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.pruning.weight.shares import DenseModel, shares_of_blocks
from shortened_llm.pruning.work import uploaded
from shortened_llm.records import ModelRef, Transform, WeightsTransform, kept_blocks
from shortened_llm.storage.layout import MASKS
from shortened_llm.storage.payload import has_files
from shortened_llm.storage.store import Store

STAGE_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsJob:
    """A model, and which of its weights become zero."""

    model: ModelRef
    transforms: tuple[Transform, ...]
    """Other transforms of the plan, done before."""
    recipe: Recipe
    documents: Documents | None
    """Where text is read."""
    calibration: CalibrationConfig
    dtype: str
    """Compute type of the pass."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, object]:
        """All that the masks and weights depend on."""
        text = calibration_identity(self.documents, self.calibration) if self.recipe.reads_text else None
        return {
            "stage": STAGE_VERSION,
            "model": self.model.view(self.transforms).identity,
            "recipe": self.recipe.identity,
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
        tokens = self._tokens(streamed)
        if tokens is not None and self.recipe.is_joint:
            most = max(size for block in streamed.blocks for size in linear_inputs(block).values())
            if tokens.numel() < most:
                LOGGER.warning(
                    "calibration: %s tokens do not tell apart the %s inputs of a layer, whose weights follow from the "
                    "damping too; give more sequences", f"{tokens.numel():,}", f"{most:,}",
                )  # fmt: skip
        dense = DenseModel(
            ref=base, streamed=streamed, tokens=tokens, sparsity=self.recipe.pattern.sparsity, memory_gib=memory_gib,
            store=store,
        )  # fmt: skip
        shares = shares_of_blocks(dense, self.recipe.allocation)
        if self.recipe.allocation:
            listed = " ".join(f"{share:.2f}" for share in shares)
            LOGGER.info("%s: shares of the blocks' weights that go: %s", self.recipe.allocation[0], listed)
        zeros, exchanged, changes = list[int](), list[int](), self.recipe.changes_weights

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for index, block, pruned in pruned_blocks(streamed, tokens, self.recipe, shares, memory_gib=memory_gib):
                zeros.append(pruned.zeros)
                exchanged.append(pruned.exchanged)
                for name, tensor in _stored_tensors(block, pruned, changes=changes).items():
                    yield f"{index}.{name}", tensor
                del pruned  # or it stays while the next block is pruned

        payload = uploaded(tensors(), _layout(base, changes=changes), store.attempt_url(MASKS, self.fingerprint))
        words = f"{100 * self.recipe.pattern.sparsity:.3g} % of the blocks' weights zero"
        if self.recipe.refinement:
            LOGGER.info("%s brought back %s of %s weights", self.recipe.refinement[0], sum(exchanged), sum(zeros))
        transform = WeightsTransform(
            fingerprint=self.fingerprint,
            words=f"{words} ({', '.join(self.recipe.names)})",
            blocks=tuple(
                (block, index) for index, block in enumerate(kept_blocks(self.transforms, self.model.num_blocks))
            ),
            zeros=tuple(zeros),
            weights=dense.sizes,
            pattern=self.recipe.pattern_name,
            exchanged=sum(exchanged) if self.recipe.refinement else None,
            layers=tuple(dict.fromkeys(name for one in find_blocks(empty_view(base)) for name in linear_layers(one))),
            payload=payload,
        )
        store.write(MASKS, self.fingerprint, transform, identity=self.identity, parents=base.parents)

    def _tokens(self, streamed: StreamedModel) -> torch.Tensor | None:
        if not self.recipe.reads_text:
            return None
        assert self.documents is not None, f"{self.recipe.names} read text"
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


def _stored_tensors(block: nn.Module, pruned: PrunedBlock, *, changes: bool) -> Mapping[str, torch.Tensor]:
    """A block's tensors by their names in the layout behind its index."""
    layers = linear_layers(block).items()
    if changes:
        return {f"{name}.weight": as_matrix(layer, pruned.weights[name]) for name, layer in layers}
    return {f"{name}.weight{KEPT}": packed_mask(as_matrix(layer, pruned.kept[name])) for name, layer in layers}
