"""Tokenise a source once into shards of equal sequences."""

import importlib.metadata
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from shortened_llm.data.instructions import InstructionPairs, Pair, PairEncoder
from shortened_llm.data.pieces import PIECE_ROWS, Executor, PackedPiece, Piece, pack_pieces
from shortened_llm.data.readers import BadRow
from shortened_llm.data.rows import Tally, left_out
from shortened_llm.data.sources import Documents
from shortened_llm.data.tokens import check_ids, encode_documents
from shortened_llm.errors import BadInputError
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.records import FileEntry, TokenDataset
from shortened_llm.storage.layout import TOKEN_SHARDS, TOKENS
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join

STAGE_VERSION = 4
SHARD_TOKENS = 16 * 2**20
"""Tokens of a file, at most."""
# What is tokenised at a time: whichever is reached first. Fast tokenizers need some 200 bytes for each token.
BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 2**18


@dataclass(frozen=True, kw_only=True)
class PackingJob:
    """Token sequences of one source.

    Documents: one end-of-text token behind each, joined and cut into sequences; rows of token ids are used as they are,
    a row being one sequence. Each piece of `pieces.PIECE_ROWS` rows drops its own remainder, less than a sequence.

    Instruction pairs: one sequence each, padded with 0; pairs without room for the response are left out.
    """

    source: Documents | InstructionPairs
    tokenizer_identity: str
    vocab_size: int
    """Rows of the model's embedding table."""
    sequence_length: int
    at_most: int | None
    """Sequences that are needed; None: all."""
    skip_other_lengths: bool = False
    """Leave out rows of token ids of another length instead of refusing them."""

    @property
    def name(self) -> str:
        """The name of the source in logs."""
        return self.source.source.path

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, object]:
        """What determines the sequences."""
        return {
            "stage": STAGE_VERSION,
            "source": self.source.identity,
            "tokenizer": self.tokenizer_identity,
            "tokenizers": importlib.metadata.version("tokenizers"),
            "vocab_size": self.vocab_size,
            "sequence_length": self.sequence_length,
            "piece_rows": PIECE_ROWS,
            "skip_other_lengths": self.skip_other_lengths,
            "at_most": self.at_most,
        } | ({"responses": "behind the prompt"} if isinstance(self.source, InstructionPairs) else {})

    @property
    def place(self) -> str:
        """Where its source stands and what it is, for messages."""
        return f"{self.source.field_path}.path: {self.source.source.path!r}"

    def piece_identity(self, piece: Piece, *, cut: bool) -> dict[str, object]:
        """What determines a piece. Only one that was `cut` short depends on how many sequences were needed."""
        return self.identity | {"shard": piece.shard, "range": piece.range, "at_most": self.at_most if cut else None}


def pack_tokens(job: PackingJob, tokenizer: PreTrainedTokenizerBase, store: Store) -> TokenDataset:
    """Pack a source in this process; see `pack_with`."""
    here: Executor[Piece] = Executor(
        start=lambda piece: piece,
        result=lambda piece: pack_piece(job, piece, tokenizer, store),
        cancel=lambda piece: None,
    )
    return pack_with(here, job, store)


def pack_with(executor: Executor, job: PackingJob, store: Store) -> TokenDataset:
    """Pack a source by an executor that runs `pack_piece`, or read it back. Its record is written last.

    Returns:
        The data set, whose files are those of its pieces. It may have no sequence at all: see `check_filled`.

    Raises:
        BadInputError: the source cannot be read, or holds unknown token ids or rows of another length.
    """
    if stored := store.read(TOKENS, job.fingerprint, TokenDataset):
        return stored
    packed = pack_pieces(job.name, job.source.num_shards, job.at_most, executor)
    tally = Tally(job.source)
    for piece in packed:
        tally.add(piece.num_rows, piece.bad_rows, piece.first_bad)
    tally.finish()
    if too_long := sum(piece.left_out for piece in packed):
        LOGGER.warning(
            "%s: %d pairs are left out, since their prompts leave no room for a response in max_length = %d tokens",
            job.name, too_long, job.sequence_length,
        )  # fmt: skip
    root = join(store.url, TOKEN_SHARDS)
    total = sum(piece.num_sequences for piece in packed)
    dataset = TokenDataset(
        url=root,
        fingerprint=job.fingerprint,
        files=tuple(_below(root, piece, entry) for piece in packed for entry in piece.files),
        num_sequences=total if job.at_most is None else min(total, job.at_most),
        sequence_length=job.sequence_length,
        num_documents=sum(piece.num_documents for piece in packed),
        notes=(left_out(tally.num_rows, tally.num_bad, tally.first_bad),) if tally.num_bad else (),
    )
    parents = (job.tokenizer_identity, *(piece.fingerprint for piece in packed))
    store.write(TOKENS, job.fingerprint, dataset, identity=job.identity, parents=parents)
    return dataset


def pack_piece(job: PackingJob, piece: Piece, tokenizer: PreTrainedTokenizerBase, store: Store) -> PackedPiece:
    """Pack one piece, or read it back; a function of job and piece alone.

    Raises:
        BadInputError: see `pack_with`.
    """
    for cut in (False, True):
        if stored := store.read(TOKEN_SHARDS, fingerprint(job.piece_identity(piece, cut=cut)), PackedPiece):
            return stored
    source, tally, count, first = job.source, Tally(job.source), _Count(), piece.range * PIECE_ROWS

    def usable() -> Iterator:
        for index, row in enumerate(source.read(piece.shard, first=first, count=PIECE_ROWS), start=first):
            tally.take(row, piece.shard, index)
            if row is not None and not isinstance(row, BadRow):
                yield row

    sequences: Iterator[tuple[np.ndarray, ...]]
    if isinstance(source, InstructionPairs):
        sequences = _pair_sequences(usable(), PairEncoder(source, tokenizer, job.sequence_length), job, count)
    else:
        sequences = _document_sequences(usable(), tokenizer, job, count)
    with temporary_directory() as temporary:
        _write_shards(sequences, Path(temporary), job, count)
        cut = job.at_most is not None and count.sequences == job.at_most
        key = fingerprint(job.piece_identity(piece, cut=cut))
        url = store.attempt_url(TOKEN_SHARDS, key)
        files = upload_directory(Path(temporary), url) if count.sequences else ()
    packed = PackedPiece(
        fingerprint=key,
        url=url,
        files=files,
        num_sequences=count.sequences,
        num_documents=count.documents,
        left_out=count.left_out,
        num_rows=tally.num_rows,
        bad_rows=tally.num_bad,
        first_bad=tally.first_bad,
        is_last=not cut and tally.num_rows < PIECE_ROWS,
    )
    identity = job.piece_identity(piece, cut=cut)
    store.write(TOKEN_SHARDS, key, packed, identity=identity, parents=(job.tokenizer_identity,))
    return packed


def check_filled(dataset: TokenDataset, job: PackingJob) -> None:
    """Raises `BadInputError` where a source did not fill one sequence."""
    if dataset.num_sequences:
        return
    path, field = job.source.source.path, job.source.field_path
    if isinstance(job.source, InstructionPairs):
        raise BadInputError(
            f"{field}: {path!r} holds no pair whose prompt leaves room for a response in max_length = "
            f"{job.sequence_length} tokens; give pairs, or raise max_length"
        )
    raise BadInputError(
        f"{field}: the {dataset.num_documents} documents of {path!r} ({job.source.part}) do not fill one sequence of "
        f"{job.sequence_length} tokens; add text or set a shorter retraining.sequence_length"
    )


class _Count:
    """How far a piece is."""

    documents = 0
    sequences = 0
    left_out = 0


def _below(root: str, piece: PackedPiece, entry: FileEntry) -> FileEntry:
    """A file of a piece, named from the directory of all pieces."""
    directory = piece.url.removeprefix(f"{root}/")
    return replace(entry, path=f"{directory}/{entry.path}")


def _pair_sequences(
    pairs: Iterable[Pair], encoder: PairEncoder, job: PackingJob, count: _Count
) -> Iterator[tuple[np.ndarray, ...]]:
    """(tokens [1, length], span [1, 2]) of each pair."""
    for pair in pairs:
        encoded = encoder.encode(pair)
        if encoded is None:
            count.left_out += 1
            continue
        count.documents += 1
        row = np.zeros((1, job.sequence_length), dtype=np.int64)
        row[0, : len(encoded.tokens)] = encoded.tokens
        check_ids((int(row.min()), int(row.max())), job.vocab_size, job.place)
        yield row, np.array([[encoded.response_start, len(encoded.tokens)]], dtype=np.int32)


def _document_sequences(
    rows: Iterable[str | list[int]], tokenizer: PreTrainedTokenizerBase, job: PackingJob, count: _Count
) -> Iterator[tuple[np.ndarray, ...]]:
    """Tokens [sequences, length], a few sequences at a time."""
    length = job.sequence_length
    rest = np.empty(0, dtype=np.int64)
    for tokens in _token_stream(rows, tokenizer, job, count):
        joined = np.concatenate([rest, tokens])
        whole = len(joined) // length * length
        if whole:
            yield (joined[:whole].reshape(-1, length),)
        rest = joined[whole:]


def _token_stream(
    rows: Iterable[str | list[int]], tokenizer: PreTrainedTokenizerBase, job: PackingJob, count: _Count
) -> Iterator[np.ndarray]:
    """Token ids, int64, of a few documents at a time."""
    for batch in _batched(row for row in rows if row):
        texts = [row for row in batch if isinstance(row, str)]
        ids: list[list[int]] = []
        if texts:
            ids += [[*text, tokenizer.eos_token_id] for text in encode_documents(tokenizer, texts)]
        for row in batch:
            if isinstance(row, list):
                if len(row) == job.sequence_length:
                    ids.append(row)
                elif not job.skip_other_lengths:
                    raise BadInputError(
                        f"{job.source.field_path}: a row of token ids in {job.source.source.path!r} has {len(row)} "
                        "tokens; rows are used as they are and must have retraining.sequence_length = "
                        f"{job.sequence_length}"
                    )
        count.documents += len(ids)
        if ids:
            tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64)
            check_ids((int(tokens.min()), int(tokens.max())), job.vocab_size, job.place)
            yield tokens


def _batched(rows: Iterable[str | list[int]]) -> Iterator[list[str | list[int]]]:
    batch: list[str | list[int]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shards(sequences: Iterable[tuple[np.ndarray, ...]], directory: Path, job: PackingJob, count: _Count) -> None:
    """Write `tokens-*.npy`, and `spans-*.npy` where there are spans, of at most `SHARD_TOKENS` tokens each; stop when
    there are as many sequences as are needed."""
    per_shard = max(1, SHARD_TOKENS // job.sequence_length)
    dtype = np.uint16 if job.vocab_size <= 2**16 else np.uint32
    parts: list[tuple[np.ndarray, ...]] = []
    held = shards = 0

    def flush() -> None:
        nonlocal parts, held, shards
        for name, arrays in zip(("tokens", "spans"), zip(*parts, strict=True), strict=False):
            np.save(directory / f"{name}-{shards:05d}.npy", np.concatenate(arrays))
        parts, held, shards = [], 0, shards + 1

    for block in sequences:
        while len(block[0]):
            wanted = per_shard - held if job.at_most is None else min(per_shard - held, job.at_most - count.sequences)
            taken = tuple(array[:wanted] for array in block)
            parts.append((taken[0].astype(dtype), *taken[1:]))
            held += len(taken[0])
            count.sequences += len(taken[0])
            block = tuple(array[wanted:] for array in block)
            if held == per_shard:
                flush()
            if count.sequences == job.at_most:
                break
        if count.sequences == job.at_most:
            break
    if held:
        flush()
