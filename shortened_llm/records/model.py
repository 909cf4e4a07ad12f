"""A model: files, and the transforms under which they are loaded."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from shortened_llm.records.transform import Transform, composed


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a stored payload."""

    path: str
    """Relative to the payload's directory."""
    num_bytes: int
    sha256: str


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
        changing = [transform for transform in transforms if transform.changes(self.num_blocks)]
        return replace(self, transforms=tuple(sorted(changing, key=lambda transform: transform.kind)))

    def exported(self, *, url: str, fingerprint: str, files: tuple[FileEntry, ...]) -> "ModelRef":
        """The model of files that were written from what loads here."""
        return ModelRef(
            url=url, fingerprint=fingerprint, files=files, num_blocks=self.num_loaded_blocks, origin=self.shortening
        )

    @property
    def num_loaded_blocks(self) -> int:
        """Number of blocks that loading yields."""
        return next((len(t.kept) for t in self.transforms if t.kind == "blocks"), self.num_blocks)

    @property
    def shortening(self) -> tuple[Transform, ...] | None:
        """What makes the loaded model from the dense one, in the dense model's indices; None where it is not known."""
        return None if self.origin is None else composed(self.origin, self.transforms)

    @property
    def identity(self) -> dict[str, object]:
        """What a score of this model depends on; the place of the files is not part of it."""
        return {"files": self.fingerprint, "transforms": self.transforms}


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
    other_parameters: int
    """Number of parameters outside the blocks: embeddings, final norm, an untied head."""
    bytes_per_parameter: int
    """Bytes of each weight as it is exported."""

    def without(self, removed: Collection[int]) -> Size:
        """The size of the model without the blocks `removed`."""
        kept = [number for block, number in enumerate(self.block_parameters) if block not in removed]
        parameters = self.other_parameters + sum(kept)
        return Size(
            blocks=len(kept),
            parameters=parameters,
            nonzero_parameters=parameters,
            num_bytes=parameters * self.bytes_per_parameter,
        )
