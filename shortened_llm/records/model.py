"""A model: files, and the transforms under which they are loaded."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from shortened_llm.records.files import FileEntry, Payload
from shortened_llm.records.transform import (
    PARTS,
    BlocksTransform,
    Stored,
    SublayersTransform,
    TensorsTransform,
    Transform,
    WeightsTransform,
    WidthsTransform,
    after_export,
    composed,
    in_order,
    kept_blocks,
    of_kind,
    without_places,
)
from shortened_llm.records.units import PruneUnit, removal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model: Hugging Face files, and the transforms under which they are loaded."""

    url: str
    """Directory of config.json, tokenizer and safetensors files."""
    fingerprint: str
    """Identity of the files: what produced them, or their hashes."""
    files: tuple[FileEntry, ...]
    num_blocks: int
    """Number of blocks in the files."""
    transforms: tuple[Transform, ...] = ()
    """At most one of each kind, by kind; their indices are those of the files. One that changes nothing is left out."""
    origin: tuple[Transform, ...] | None = ()
    """What was done to the dense model to make these files, in its indices; None where it is not known."""

    def view(self, transforms: Sequence[Transform]) -> "ModelRef":
        """These files, loaded under `transforms`."""
        return replace(self, transforms=in_order(transforms, self.num_blocks))

    def without(self, unit: PruneUnit, removed: Collection[int]) -> "ModelRef":
        """What is loaded, without some of its units as well; their numbers are those of the blocks of the files, which
        loading leaves as many."""
        lost = removal(unit, removed, self.num_blocks)
        return self.view(composed(self.transforms, lost, self.num_blocks))

    def exported(self, *, url: str, fingerprint: str, files: tuple[FileEntry, ...]) -> "ModelRef":
        """The model of files that were written from what loads here."""
        return ModelRef(
            url=url,
            fingerprint=fingerprint,
            files=files,
            num_blocks=self.num_loaded_blocks,
            transforms=after_export(self.transforms, self.num_blocks),
            origin=None if self.shortening is None else without_places(self.shortening),
        )

    @property
    def num_loaded_blocks(self) -> int:
        """Number of blocks that loading yields."""
        return len(kept_blocks(self.transforms, self.num_blocks))

    @property
    def shortening(self) -> tuple[Transform, ...] | None:
        """What makes the loaded model from the dense one, in the dense model's indices; None where it is not known."""
        return None if self.origin is None else composed(self.origin, self.transforms, self.num_blocks)

    @property
    def identity(self) -> dict[str, object]:
        """What a score of this model depends on; the place of the files is not part of it."""
        return {"files": self.fingerprint, "transforms": without_places(self.transforms)}

    @property
    def parents(self) -> tuple[str, ...]:
        """Fingerprints of the results that hold what is loaded."""
        stored = (one for one in self.transforms if isinstance(one, Stored) and one.payload)
        return (self.fingerprint, *(one.fingerprint for one in stored))

    @property
    def payloads(self) -> tuple[Payload, ...]:
        """The files that hold what is loaded."""
        stored = (one.payload for one in self.transforms if isinstance(one, Stored) and one.payload)
        return (Payload(url=self.url, files=self.files), *stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a model is."""

    blocks: int
    parameters: int
    """Number of parameters; a tied head counts once."""
    nonzero_parameters: int
    num_bytes: int
    """Bytes of the weights as they are exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters of a model by block, from its files."""

    block_parameters: tuple[int, ...]
    """Number of parameters of each block."""
    part_parameters: tuple[tuple[int, ...], ...] | None = None
    """Number of parameters of each block's attention and MLP; None where blocks do not have one of each."""
    width_parameters: tuple[int, int] | None = None
    """Number of parameters of one key-value head with its query heads, and of one MLP channel; None where it is not
    known where they lie."""
    linear_parameters: tuple[int, ...] | None = None
    """Number of weights of each block's linear layers; None where these do not hold all of its matrices."""
    other_parameters: int
    """Number of parameters outside the blocks: embeddings, final norm, an untied head."""
    bytes_per_parameter: int
    """Bytes of each weight as it is exported."""

    def of_units(self, unit: PruneUnit) -> tuple[int, ...]:
        """Number of parameters of each unit, in model order."""
        if unit == "block":
            return self.block_parameters
        assert self.part_parameters is not None, "asked of blocks that have one of each"
        return tuple(number for parts in self.part_parameters for number in parts)

    def without(self, removed: Collection[int]) -> Size:
        """The size of the model without the blocks `removed`."""
        return self.after((BlocksTransform.without(removed, len(self.block_parameters)),))

    def after(self, transforms: Sequence[Transform]) -> Size:
        """The size of the model under transforms."""
        kept = kept_blocks(transforms, len(self.block_parameters))
        exported = self.other_parameters + sum(self.block_parameters[block] for block in kept)
        if tensors := of_kind(transforms, TensorsTransform):
            exported += tensors.added * len(kept)
        zeros = 0
        if widths := of_kind(transforms, WidthsTransform):
            assert self.width_parameters is not None, "the check of the transform finds the axes"
            group, channel = self.width_parameters
            groups = {block: len(widths.kept_groups(block)) for block in kept}
            channels = {block: len(widths.kept_channels(block)) for block in kept}
            wide_groups, wide_channels = max(groups.values()), max(channels.values())
            for block in kept:
                exported -= group * (widths.num_groups - wide_groups) + channel * (widths.num_channels - wide_channels)
                zeros += group * (wide_groups - groups[block]) + channel * (wide_channels - channels[block])
        if sublayers := of_kind(transforms, SublayersTransform):
            assert self.part_parameters is not None, "the check of the transform finds the parts"
            zeros += sum(self.part_parameters[block][PARTS.index(part)] for block, part in sublayers.removed)
        weights = of_kind(transforms, WeightsTransform)
        return Size(
            blocks=len(kept),
            parameters=exported - zeros,
            nonzero_parameters=exported - zeros - (sum(weights.zeros) if weights else 0),
            num_bytes=exported * self.bytes_per_parameter,
        )
