"""Score the blocks of a model by one criterion, or read the scores back."""

import importlib.metadata
from dataclasses import replace

import torch

from shortened_llm.config import CalibrationConfig, Criterion, ScoringConfig
from shortened_llm.data.calibration import STAGE_VERSION as CALIBRATION_VERSION
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.sources import Documents
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.load import load_model, load_tokenizer, model_directory
from shortened_llm.records import BlockScores, ModelRef
from shortened_llm.scoring.criterion import CriterionScores, Progress
from shortened_llm.scoring.magnitude import score_magnitude
from shortened_llm.scoring.ppl import score_ppl
from shortened_llm.scoring.taylor import score_taylor
from shortened_llm.storage.store import Store

KIND = "scores"
STAGE_VERSION = 1


def score_blocks(
    criterion: Criterion,
    model: ModelRef,
    documents: Documents,
    calibration: CalibrationConfig,
    scoring: ScoringConfig,
    store: Store,
    *,
    device: str,
    on_progress: Progress,
) -> BlockScores:
    """Scores of every block; protection is applied when a plan is made, so it costs no new scores."""
    identity = _identity(criterion, model, documents, calibration, scoring)
    key = fingerprint(identity)
    protected = protected_blocks(scoring, model.num_blocks)
    if stored := store.read(KIND, key, BlockScores):
        return replace(stored, protected=protected)
    tokenizer = load_tokenizer(model_directory(model))
    # Magnitude reads no text, and its identity says so.
    tokens = None if criterion == "magnitude" else calibration_tokens(documents, calibration, tokenizer)
    scores = _compute(criterion, model, tokens, calibration, scoring, device, on_progress)
    record = BlockScores(
        criterion=criterion,
        scores=scores.scores,
        order=scores.order,
        standard_errors=scores.standard_errors,
        protected=protected,
        dense_perplexity=scores.dense_perplexity,
        protocol=_protocol(criterion, documents, calibration, scoring),
        fingerprint=key,
    )
    store.write(KIND, key, record, identity=identity)
    return record


def protected_blocks(scoring: ScoringConfig, num_blocks: int) -> tuple[int, ...]:
    """Blocks that no plan removes: the first and the last ones, as configured."""
    last = range(max(0, num_blocks - scoring.protect_last), num_blocks)
    return tuple(sorted({*range(min(scoring.protect_first, num_blocks)), *last}))


def _compute(
    criterion: Criterion,
    ref: ModelRef,
    tokens: torch.Tensor | None,
    calibration: CalibrationConfig,
    scoring: ScoringConfig,
    device: str,
    on_progress: Progress,
) -> CriterionScores:
    model = load_model(ref, scoring.dtype, device=device)
    if criterion == "magnitude" or tokens is None:
        return score_magnitude(model, scoring.magnitude, on_progress=on_progress)
    if criterion == "taylor":
        return score_taylor(model, tokens, scoring.taylor, batch_size=calibration.batch_size, on_progress=on_progress)
    return score_ppl(model, tokens, batch_size=calibration.batch_size, on_progress=on_progress)


def _options(criterion: Criterion, scoring: ScoringConfig) -> dict[str, object]:
    options = {"taylor": scoring.taylor, "magnitude": scoring.magnitude}.get(criterion)
    return options.model_dump() if options else {}


def _identity(
    criterion: Criterion,
    model: ModelRef,
    documents: Documents,
    calibration: CalibrationConfig,
    scoring: ScoringConfig,
) -> dict[str, object]:
    text = {
        "stage": CALIBRATION_VERSION,
        "documents": documents.identity,
        "num_sequences": calibration.num_sequences,
        "sequence_length": calibration.sequence_length,
        "seed": calibration.seed,
        "tokenizers": importlib.metadata.version("tokenizers"),
    }
    return {
        "stage": STAGE_VERSION,
        "criterion": criterion,
        "options": _options(criterion, scoring),
        "model": model.identity,
        "dtype": scoring.dtype,
        "calibration": None if criterion == "magnitude" else text,
    }


def _protocol(
    criterion: Criterion, documents: Documents, calibration: CalibrationConfig, scoring: ScoringConfig
) -> str:
    options = " ".join(f"{name}={value}" for name, value in _options(criterion, scoring).items())
    if criterion == "magnitude":
        return f"weights only, {options}, {scoring.dtype}"
    text = (
        f"{calibration.num_sequences}x{calibration.sequence_length} tokens of {calibration.label} "
        f"({documents.part}), seed {calibration.seed}"
    )
    return ", ".join(part for part in (text, options, scoring.dtype) if part)
