"""Whether texts are there and hold what one use of each needs; they are read only as far as that takes."""

from itertools import islice

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from shortened_llm.config import CalibrationConfig, ExperimentConfig
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.instructions import InstructionPairs, PairEncoder
from shortened_llm.data.sources import Documents, TextRoles
from shortened_llm.data.tokens import check_ids
from shortened_llm.errors import BadInputError, Faults
from shortened_llm.evaluation.perplexity import check_bos
from shortened_llm.logs import LOGGER
from shortened_llm.models.families import needs_bos
from shortened_llm.search.epochs import expected_epochs

# Of instruction data, at submission.
CHECKED_PAIRS = 100
MOST_CHARACTERS = 64
"""Bytes of a document for each token that is needed: more than any tokenizer takes on average."""


def check_calibration(
    calibration: CalibrationConfig,
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
) -> None:
    """Draw the calibration sequences; raises `BadInputError` as `data.calibration.calibration_tokens`."""
    bos = needs_bos(calibration.bos, model_config.model_type)
    calibration_tokens(documents, calibration, tokenizer, vocab_size=model_config.vocab_size, bos=bos)


def check_training_texts(
    config: ExperimentConfig, roles: TextRoles, tokenizer: PreTrainedTokenizerBase, vocab_size: int, faults: Faults
) -> None:
    """Check that each corpus fills a sequence, and that some of the first instruction pairs can be used."""
    for documents in roles.train if config.retraining.uses_corpus else ():
        with faults.gather():
            length = config.retraining.sequence_length
            _check_text(documents, tokenizer, vocab_size, length, field="retraining.sequence_length")
    if config.retraining.uses_corpus:
        with faults.gather():
            if passes := expected_epochs(config.retraining, roles.train, tokenizer):
                LOGGER.warning("%s", passes)
    if roles.instructions is not None:
        with faults.gather():
            _check_pairs(roles.instructions, tokenizer, vocab_size)


def check_evaluation_texts(
    config: ExperimentConfig,
    roles: TextRoles,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    faults: Faults,
) -> None:
    """Check that each text fills a segment, which the model's context holds."""
    evaluation = config.evaluation
    sources = (*evaluation.selection.perplexity, *evaluation.report.perplexity, *evaluation.report.agreement)
    positions = getattr(model_config, "max_position_embeddings", None)
    for documents, source in zip((*roles.selection, *roles.report, *roles.agreement), sources, strict=True):
        field = f"{documents.field_path}.segment_length"
        length = source.segment_length + (source.bos == "each")
        with faults.gather():
            if positions and length > positions:
                raise BadInputError(
                    f"{field}: is {source.segment_length}{' and a BOS' if source.bos == 'each' else ''}, but the "
                    f"model's context has {positions} tokens"
                )
            _check_text(documents, tokenizer, model_config.vocab_size, source.segment_length, field=field)
            check_bos(documents, source, tokenizer, model_type=model_config.model_type)


def _check_pairs(pairs: InstructionPairs, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Some pairs at the start; all are checked when they are packed."""
    max_length = pairs.source.max_length
    encoder = PairEncoder(pairs, tokenizer, max_length)
    found = usable = 0
    for pair in islice(pairs.usable(), CHECKED_PAIRS):
        found += 1
        if encoded := encoder.encode(pair):
            usable += 1
            check_ids(encoded.tokens, vocab_size, f"{pairs.field_path}.path: {pairs.source.path!r}")
    if not found:
        raise BadInputError(f"{pairs.field_path}.path: {pairs.source.path!r} holds no pairs")
    if not usable:
        raise BadInputError(
            f"{pairs.field_path}.max_length: is {max_length}, but the prompts of all of the first {found} pairs of "
            f"{pairs.source.path!r} fill that; raise it"
        )


def _check_text(
    source: Documents, tokenizer: PreTrainedTokenizerBase, vocab_size: int, length: int, *, field: str
) -> None:
    """Read as far as needed for `length` tokens."""
    found_documents = found_tokens = 0
    for row in source.usable():
        if not row:
            continue
        found_documents += 1
        if isinstance(row, list) and len(row) != length:
            raise BadInputError(
                f"{field}: is {length}, but a row of token ids in {source.source.path!r} has {len(row)}; a row is one "
                "sequence, used as it is"
            )
        ids = row if isinstance(row, list) else tokenizer(row[: MOST_CHARACTERS * length], verbose=False)["input_ids"]
        check_ids(ids, vocab_size, f"{source.field_path}.path: {source.source.path!r}")
        found_tokens += len(ids)
        if found_tokens >= length:
            return
    if not found_documents:
        raise BadInputError(f"{source.field_path}.path: {source.source.path!r} ({source.part}) holds no documents")
    raise BadInputError(
        f"{source.field_path}.path: {source.source.path!r} ({source.part}) has {found_tokens} tokens, fewer than "
        f"one sequence of {field} {length}"
    )
