"""What the methods train on, packed once as Ray tasks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayTaskError

from shortened_llm.config import ExperimentConfig, RetrainingConfig
from shortened_llm.data.packing import SHARD_TOKENS, PackingJob, check_filled, pack_piece, pack_with
from shortened_llm.data.pieces import Executor, PackedPiece, Piece
from shortened_llm.data.sources import Documents, TextRoles
from shortened_llm.errors import original
from shortened_llm.logs import LOGGER, setup_process
from shortened_llm.models.directory import load_config, load_tokenizer, metadata_directory
from shortened_llm.records import ModelRef, TokenDataset, TokenMixture, TrainingData
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.storage.store import Store

# Lost tasks are started again by Ray, and do what they had not stored yet.
RETRIES = 2


def start_packing(
    dense: ModelRef, config: ExperimentConfig, roles: TextRoles, store: Store, progress: Progress
) -> Callable[[], TrainingData]:
    """Begin to pack what the methods train on, in Ray tasks; returns what waits for it."""
    jobs = packing_jobs(dense, config.retraining, roles)
    packing = _pack.remote(dense, jobs, config.resources.cpus_per_evaluator, store, progress.about("tokens"))

    def wait() -> TrainingData:
        corpus, instructions, validation = ray.get(packing)
        if cut := unequally_cut(jobs.corpus, corpus, config.retraining):
            LOGGER.warning("%s", cut)
        return TrainingData(
            corpus=_mixture(corpus, source_shares(config.retraining)),
            instructions=_mixture(instructions),
            # One text may be measured under several protocols.
            validation=_mixture(list({d.fingerprint: d for d in validation if d.num_sequences}.values())),
        )

    return wait


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingJobs:
    """What is packed for an experiment, one job for each source."""

    corpus: tuple[PackingJob, ...]
    instructions: tuple[PackingJob, ...]
    validation: tuple[PackingJob, ...]


def packing_jobs(dense: ModelRef, retraining: RetrainingConfig, roles: TextRoles) -> PackingJobs:
    """The jobs that the methods of an experiment need.

    A source is read until it covers its share of the corpus, or one shard if that is more.
    """
    length = retraining.sequence_length
    vocab_size = load_config(metadata_directory(dense)).vocab_size
    wanted = (retraining.corpus_tokens or max(retraining.budgets)) // length
    shares = source_shares(retraining) or (1.0,) * len(roles.train)

    def of_texts(source: Documents, at_most: int) -> PackingJob:
        return PackingJob(
            source=source, tokenizer_identity=dense.fingerprint, vocab_size=vocab_size, sequence_length=length,
            at_most=at_most,
        )  # fmt: skip

    corpus = tuple(
        of_texts(source, max(math.ceil(share * wanted), SHARD_TOKENS // length, 1))
        for source, share in zip(roles.train, shares, strict=True)
    )
    pairs = roles.instructions
    instructions = () if pairs is None else (
        PackingJob(
            source=pairs, tokenizer_identity=dense.fingerprint, vocab_size=vocab_size,
            sequence_length=pairs.source.max_length, at_most=None,
        ),
    )  # fmt: skip
    trains = retraining.uses_corpus or retraining.uses_instructions
    validation = tuple(
        replace(of_texts(source, retraining.validation_sequences), skip_other_lengths=True)
        for source in roles.selection
        if trains and retraining.validation_sequences
    )
    return PackingJobs(
        corpus=corpus if retraining.uses_corpus else (), instructions=instructions, validation=validation
    )


def unequally_cut(
    jobs: Sequence[PackingJob], datasets: Sequence[TokenDataset], retraining: RetrainingConfig
) -> str | None:
    """What sources without weights are mixed by, where one of them holds more than was read of it; None elsewhere."""
    if len(jobs) < 2 or source_shares(retraining) is not None:
        return None
    labels = [source.label for source in retraining.data]
    cut = [name for name, job, one in zip(labels, jobs, datasets, strict=True) if one.num_sequences == job.at_most]
    if not cut:
        return None
    total = sum(one.num_sequences for one in datasets)
    shares = ", ".join(f"{one.num_sequences / total:.0%} {name}" for name, one in zip(labels, datasets, strict=True))
    return (
        f"Training texts are mixed by what was read of them, not by their sizes: {shares}; of {', '.join(cut)} not all "
        "was read. retraining.data.N.weight says how to mix them."
    )


def source_shares(retraining: RetrainingConfig) -> tuple[float, ...] | None:
    """Share of the training stream from each source, summing to 1; None where sources have no weights."""
    weights = [source.weight for source in retraining.data if source.weight is not None]
    return tuple(weight / sum(weights) for weight in weights) if weights else None


def _mixture(parts: Sequence[TokenDataset], weights: tuple[float, ...] | None = None) -> TokenMixture | None:
    return TokenMixture(parts=tuple(parts), weights=weights) if parts else None


@ray.remote(num_cpus=0, max_retries=RETRIES)
def _pack(
    dense: ModelRef, jobs: PackingJobs, num_cpus: float, store: Store, progress: Progress
) -> tuple[list[TokenDataset], list[TokenDataset], list[TokenDataset]]:
    """Pack one source after the other, each by a task for every piece; what is stored already is read back."""
    setup_process()
    store.enter()

    def pack(job: PackingJob) -> TokenDataset:
        LOGGER.info("%s: waiting for resources", job.name)
        _ = job.fingerprint  # so that the tasks find the hashes of its files already computed
        task, inputs = _pack_piece.options(num_cpus=num_cpus), ray.put((dense, job, store))
        executor = Executor(start=lambda piece: task.remote(inputs, piece), result=ray.get, cancel=ray.cancel)
        return pack_with(executor, job, store)

    def pack_all(several: tuple[PackingJob, ...], *, must_fill: bool) -> list[TokenDataset]:
        datasets = []
        for job in several:
            datasets.append(pack(job))
            if must_fill:
                check_filled(datasets[-1], job)
        return datasets

    try:
        with progress.under_way():
            return (
                pack_all(jobs.corpus, must_fill=True),
                pack_all(jobs.instructions, must_fill=True),
                pack_all(jobs.validation, must_fill=False),
            )
    except RayTaskError as error:
        raise original(error) from None  # of a piece's task: bad input is to be seen as such


@ray.remote(max_retries=RETRIES)
def _pack_piece(inputs: tuple[ModelRef, PackingJob, Store], piece: Piece) -> PackedPiece:
    setup_process()
    dense, job, store = inputs
    store.enter()
    return pack_piece(job, piece, load_tokenizer(metadata_directory(dense)), store)
