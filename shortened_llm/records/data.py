"""Packed tokens."""

from dataclasses import dataclass

from shortened_llm.records.files import FileEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDataset:
    """Token sequences of one source, in shards."""

    url: str
    """Directory of the shards."""
    fingerprint: str
    files: tuple[FileEntry, ...]
    """`tokens-*.npy`: arrays [sequences, sequence_length]; for instruction data also `spans-*.npy`, arrays
    [sequences, 2]: where the response begins and where it ends, the rest being padding."""
    num_sequences: int
    sequence_length: int
    num_documents: int
    notes: tuple[str, ...] = ()
    """What the user should know of it, such as how many rows could not be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMixture:
    """Data sets of one sequence length, mixed."""

    parts: tuple[TokenDataset, ...]
    weights: tuple[float, ...] | None = None
    """Share of the training stream from each part, summing to 1; None: every sequence is equally likely."""

    @property
    def identity(self) -> dict[str, object]:
        """What a model trained on it depends on."""
        return {"parts": [part.fingerprint for part in self.parts], "weights": self.weights}

    @property
    def num_sequences(self) -> int:
        return sum(part.num_sequences for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What the methods of an experiment train on."""

    corpus: TokenMixture | None
    """Where a method trains on it."""
    instructions: TokenMixture | None
    """Where a method trains on them."""
    validation: TokenMixture | None
    """Sequences of the selection texts, where something is trained and the texts fill any."""
