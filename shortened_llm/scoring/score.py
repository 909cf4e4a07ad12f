"""Scores of every block by one criterion, reduced from what was measured."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from shortened_llm.config import Criterion
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import BlockScores, Cut, ScoreDraw
from shortened_llm.scoring.angular_span import angular_span_scores
from shortened_llm.scoring.block_influence import block_influence_scores
from shortened_llm.scoring.confidence import resampled_cuts
from shortened_llm.scoring.criterion import CriterionScores
from shortened_llm.scoring.greedy_ppl import greedy_ppl_scores
from shortened_llm.scoring.job import FREE, STAGE_VERSION, WALKED, ScoringJob, draws, identity, unit_of
from shortened_llm.scoring.kl import kl_scores
from shortened_llm.scoring.last_n import last_n_scores
from shortened_llm.scoring.measure import measured
from shortened_llm.scoring.ppl import ppl_scores
from shortened_llm.scoring.random_order import random_scores
from shortened_llm.storage.store import Store

KIND = "scores"


def score_blocks(criterion: Criterion, job: ScoringJob, store: Store, *, num_shards: int = 1) -> BlockScores:
    """The scores of a criterion whose units of work are done; stored and returned.

    Raises:
        LookupError: a unit is not done.
    """
    its_identity = _identity(criterion, job)
    key = fingerprint(its_identity)
    if stored := store.read(KIND, key, BlockScores):
        return stored
    record = replace(_reduce(criterion, job, store, num_shards), fingerprint=key)
    store.write(KIND, key, record, identity=its_identity)
    return record


def _reduce(criterion: Criterion, job: ScoringJob, store: Store, num_shards: int) -> BlockScores:
    cuts: tuple[Cut, ...] | None = None
    others: tuple[ScoreDraw, ...] = ()
    tokens = 0
    if criterion in FREE:
        scores = _free_scores(criterion, job)
    else:
        reduce = _reduction(criterion, job)
        values = measured(criterion, job, store, num_shards=num_shards)
        scores = reduce(values)
        if criterion in WALKED:
            cuts = resampled_cuts(values, reduce, job.counts, job.protected)
        others = tuple(
            _draw(
                job.calibration.seed + draw, reduce(measured(criterion, job, store, num_shards=num_shards, draw=draw))
            )
            for draw in draws(criterion, job)[1:]
        )
        tokens = unit_of(criterion, job).stop * job.calibration.sequence_length
    return BlockScores(
        criterion=criterion,
        scores=scores.scores,
        order=scores.order,
        sets=scores.sets,
        standard_errors=scores.standard_errors,
        cuts=cuts,
        draws=others,
        protected=job.protected,
        dense_perplexity=scores.dense_perplexity,
        tokens=tokens,
        protocol=_protocol(criterion, job, tokens),
        fingerprint="",
    )


def _reduction(criterion: Criterion, job: ScoringJob) -> Callable[[np.ndarray], CriterionScores]:
    """From what was measured to scores."""
    if criterion == "angular_span":
        return lambda angles: angular_span_scores(angles, job.protected)
    return {
        "ppl": ppl_scores,
        "kl": kl_scores,
        "block_influence": block_influence_scores,
        "greedy_ppl": greedy_ppl_scores,
    }.get(criterion, lambda values: CriterionScores(scores=tuple(values.tolist())))


def _free_scores(criterion: Criterion, job: ScoringJob) -> CriterionScores:
    if criterion == "last_n":
        return last_n_scores(job.num_blocks)
    return random_scores(job.num_blocks, job.scoring.random.seed)


def _draw(seed: int, scores: CriterionScores) -> ScoreDraw:
    return ScoreDraw(seed=seed, scores=scores.scores, order=scores.order, sets=scores.sets)


def _identity(criterion: Criterion, job: ScoringJob) -> dict[str, object]:
    measurement = None if criterion in FREE else identity(unit_of(criterion, job), job)
    return {
        "stage": STAGE_VERSION,
        "criterion": criterion,
        "measurement": measurement,
        "draws": len(draws(criterion, job)),
        "num_blocks": job.num_blocks,
        "protected": job.protected,
        "cuts": job.counts,
        "seed": job.scoring.random.seed if criterion == "random" else None,
    }


def _protocol(criterion: Criterion, job: ScoringJob, tokens: int) -> str:
    """Text, lengths, dtype and options behind the scores, in words."""
    if criterion == "last_n":
        return "position only"
    if criterion == "random":
        return f"seed {job.scoring.random.seed}"
    calibration, words = job.calibration, []
    if tokens and job.documents is not None:
        words.append(
            f"{tokens // calibration.sequence_length}x{calibration.sequence_length} tokens of {calibration.label} "
            f"({job.documents.part}), seed {calibration.seed}"
        )
    else:
        words.append("weights only")
    if criterion == "greedy_ppl":
        words.append(f"{max(job.counts)} removals")
    options = {"taylor": job.scoring.taylor, "magnitude": job.scoring.magnitude}.get(criterion)
    if options:
        words.append(" ".join(f"{name}={value}" for name, value in options.model_dump().items()))
    return ", ".join([*words, job.scoring.dtype])
