"""Answer bad input before anything is spent: every check that needs no accelerator and writes nothing."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from shortened_llm.config import TEXTLESS_CRITERIA, Method, SearchConfig, changed_keys
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.instructions import InstructionPairs, PairEncoder
from shortened_llm.data.sources import Documents, TextRoles, text_roles
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.efficiency import check_lengths
from shortened_llm.evaluation.own_metric import load_metric
from shortened_llm.evaluation.perplexity import check_bos
from shortened_llm.evaluation.task_check import check_tasks, load_task
from shortened_llm.models.families import needs_bos
from shortened_llm.models.load import empty_model, load_config, load_gguf_metadata, load_tokenizer
from shortened_llm.models.stage import fetch_metadata
from shortened_llm.models.walk import check_walkable
from shortened_llm.pruning.plan import requested_counts
from shortened_llm.retraining.adapters import check_targets
from shortened_llm.retraining.recipe import chains
from shortened_llm.scoring.job import protected_blocks
from shortened_llm.search.experiment import read_config
from shortened_llm.search.trackers import check_tracking
from shortened_llm.storage.store import Store

# Of instruction data, at submission.
CHECKED_PAIRS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringFacts:
    """What the checks found out about the model and its texts."""

    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    roles: TextRoles
    cuts: tuple[tuple[int, float], ...]
    """(blocks to remove, ratio as asked for)."""

    @property
    def num_blocks(self) -> int:
        return int(self.model_config.num_hidden_layers)

    @property
    def model_type(self) -> str:
        return str(self.model_config.model_type)

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding table."""
        return int(self.model_config.vocab_size)

    @property
    def counts(self) -> tuple[int, ...]:
        """Distinct numbers of blocks to remove, ascending."""
        return tuple(sorted({count for count, _ in self.cuts}))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFacts(ScoringFacts):
    """What the checks of a whole search found out."""

    max_trials: int
    """Distinct trials, at most: equal plans are merged once scores are known."""


def check_scoring(config: SearchConfig, store: Store) -> ScoringFacts:
    """Check what scoring needs: storage, model, protected blocks, cuts and calibration text.

    Raises:
        BadInputError: with the field, the value and what is allowed.
    """
    store.probe()
    with tempfile.TemporaryDirectory(prefix="shortened_llm_check_") as temporary:
        metadata = fetch_metadata(config.model, Path(temporary))
        model_config, tokenizer = _read_metadata(metadata)
    num_blocks = model_config.num_hidden_layers
    if tokenizer.eos_token_id is None:
        raise BadInputError(f"model.path: the tokenizer of {config.model.path!r} has no end-of-text token")
    positions = getattr(model_config, "max_position_embeddings", None)
    lengths = {
        "calibration.sequence_length": config.calibration.sequence_length,
        "retraining.sequence_length": config.retraining.sequence_length,
    }
    if config.retraining.uses_instructions and config.retraining.instructions is not None:
        lengths["retraining.instructions.max_length"] = config.retraining.instructions.max_length
    for field, length in lengths.items():
        if positions and length > positions:
            raise BadInputError(f"{field}: is {length}, but the model's context has {positions} tokens")
    protected = protected_blocks(config.scoring, num_blocks)
    if len(protected) >= num_blocks:
        raise BadInputError(
            f"scoring.protect_first {config.scoring.protect_first} and protect_last {config.scoring.protect_last} "
            f"protect all {num_blocks} blocks"
        )
    reads_text = bool(set(config.scoring.criteria) - TEXTLESS_CRITERIA)
    if reads_text:
        check_walkable(model_config)
    cuts = requested_counts(config.search, num_blocks, protected)
    roles, calibration = text_roles(config), config.calibration
    if reads_text:
        bos = needs_bos(calibration.bos, model_config.model_type)
        for draw in range(calibration.draws):
            calibration_tokens(
                roles.calibration, calibration, tokenizer, vocab_size=model_config.vocab_size, bos=bos, draw=draw
            )
    else:
        _check_text(
            roles.calibration, tokenizer, model_config.vocab_size, calibration.sequence_length,
            documents=calibration.num_sequences, field="calibration.sequence_length",
        )  # fmt: skip
    return ScoringFacts(model_config=model_config, tokenizer=tokenizer, roles=roles, cuts=cuts)


def check_retraining(config: SearchConfig, store: Store) -> ScoringFacts:
    """Check what scoring and retraining need.

    Raises:
        BadInputError: with the field, the value and what is allowed.
    """
    facts = check_scoring(config, store)
    _check_training_texts(config, facts)
    _check_evaluation_texts(config, facts)
    for method, budget in product(config.retraining.methods, config.retraining.budgets):
        list(chains(config.retraining, method, budget, num_pairs=None))
    if {"lora", "cpt_lora"} & set(config.retraining.methods):
        check_targets(empty_model(facts.model_config), config.retraining.lora.target_modules)
    return facts


def check_search(config: SearchConfig, store: Store) -> SearchFacts:
    """Check everything that a configuration names.

    Raises:
        BadInputError: with the field, the value and what is allowed.
    """
    check_tracking(config.tracking)
    facts = check_retraining(config, store)
    check_unchanged(config, store)
    _check_tasks_and_metrics(config, facts)
    return SearchFacts(
        model_config=facts.model_config,
        tokenizer=facts.tokenizer,
        roles=facts.roles,
        cuts=facts.cuts,
        max_trials=_count_trials(config, facts),
    )


def check_evaluation(config: SearchConfig, store: Store) -> ScoringFacts:
    """Check what scoring blocks and evaluating models need.

    Raises:
        BadInputError: with the field, the value and what is allowed.
    """
    facts = check_scoring(config, store)
    _check_evaluation_texts(config, facts)
    _check_tasks_and_metrics(config, facts)
    return facts


def _check_tasks_and_metrics(config: SearchConfig, facts: ScoringFacts) -> None:
    evaluation = config.evaluation
    check_tasks(evaluation.report.tasks, evaluation.task_directory, tokenizer=facts.tokenizer)
    for task in evaluation.report.tasks:
        load_task(task.task, evaluation.task_directory)
    for path in evaluation.report.metrics:
        load_metric(path)
    if evaluation.report.efficiency:
        check_lengths(facts.model_config, evaluation.efficiency)


def _count_trials(config: SearchConfig, facts: ScoringFacts) -> int:
    """Trials where no two criteria choose the same blocks."""

    def of_methods(methods: Sequence[Method], budget: int) -> int:
        return sum(len(list(chains(config.retraining, method, budget, num_pairs=None))) for method in methods)

    retraining, controls = config.retraining, config.search.controls
    count = 0
    for _, ratio in facts.cuts:
        budget = retraining.budget(ratio)
        count += len(config.scoring.criteria) * of_methods(retraining.methods, budget)
        count += of_methods(["cpt"], budget) if "random" in controls else 0
    if "dense" in controls:
        count += sum(of_methods(["cpt"], budget) for budget in retraining.budgets)
    return count


def check_unchanged(config: SearchConfig, store: Store) -> None:
    """Raises `BadInputError` where the experiment's name stands for another configuration already."""
    stored = read_config(store, config.experiment)
    if stored is None:
        return
    if changes := changed_keys(stored, config):
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changes.items())
        raise BadInputError(
            f"experiment: {config.experiment!r} exists with another configuration ({listed}); choose a new name, such "
            f"as --experiment {config.experiment}-2: what both share is not computed again"
        )


def _read_metadata(metadata: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    if metadata.is_file():
        return load_gguf_metadata(metadata)
    return load_config(metadata), load_tokenizer(metadata)


def _check_training_texts(config: SearchConfig, facts: ScoringFacts) -> None:
    """Each text is there and holds what one use of it needs."""
    roles, tokenizer, retraining = facts.roles, facts.tokenizer, config.retraining
    for documents in roles.train if retraining.uses_corpus else ():
        _check_text(
            documents, tokenizer, facts.vocab_size, retraining.sequence_length, documents=0,
            field="retraining.sequence_length",
        )  # fmt: skip
    if roles.instructions is not None:
        _check_pairs(roles.instructions, tokenizer, facts.vocab_size)


def _check_evaluation_texts(config: SearchConfig, facts: ScoringFacts) -> None:
    """Each text is there and holds a segment."""
    roles, evaluation = facts.roles, config.evaluation
    sources = (*evaluation.selection.perplexity, *evaluation.report.perplexity, *evaluation.report.agreement)
    for documents, source in zip((*roles.selection, *roles.report, *roles.agreement), sources, strict=True):
        field = f"{documents.field_path}.segment_length"
        positions = getattr(facts.model_config, "max_position_embeddings", None)
        length = source.segment_length + (source.bos == "each")
        if positions and length > positions:
            raise BadInputError(
                f"{field}: is {source.segment_length}{' and a BOS' if source.bos == 'each' else ''}, but the model's "
                f"context has {positions} tokens"
            )
        _check_text(documents, facts.tokenizer, facts.vocab_size, source.segment_length, documents=0, field=field)
        check_bos(documents, source, facts.tokenizer, model_type=facts.model_type)


def _check_pairs(pairs: InstructionPairs, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Some pairs at the start; all are checked when they are packed."""
    max_length = pairs.source.max_length
    encoder = PairEncoder(pairs, tokenizer, max_length)
    found = usable = 0
    for pair in islice(chain.from_iterable(map(pairs.read, range(pairs.num_shards))), CHECKED_PAIRS):
        found += 1
        if encoded := encoder.encode(pair):
            usable += 1
            _check_ids(encoded.tokens, vocab_size, f"{pairs.field_path}.path: {pairs.source.path!r}")
    if not found:
        raise BadInputError(f"{pairs.field_path}.path: {pairs.source.path!r} holds no pairs")
    if not usable:
        raise BadInputError(
            f"{pairs.field_path}.max_length: is {max_length}, but the prompts of all of the first {found} pairs of "
            f"{pairs.source.path!r} fill that; raise it"
        )


def _check_ids(ids: list[int], vocab_size: int, where: str) -> None:
    """Tokens that the model has an embedding for."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise BadInputError(
                f"{where} holds token id {token}; the model's vocabulary has ids from 0 to {vocab_size - 1}"
            )


def _check_text(
    source: Documents,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    length: int,
    *,
    documents: int,
    field: str,
) -> None:
    """Read only as far as needed: `length` tokens in all, and in each of `documents` documents where that is not 0."""
    found_documents = found_tokens = long_enough = 0
    for row in source.rows():
        if not row:
            continue
        found_documents += 1
        if isinstance(row, list) and len(row) != length:
            raise BadInputError(
                f"{field}: is {length}, but a row of token ids in {source.source.path!r} has {len(row)}; a row is one "
                "sequence, used as it is"
            )
        ids = row if isinstance(row, list) else tokenizer(row, verbose=False)["input_ids"]
        _check_ids(ids, vocab_size, f"{source.field_path}.path: {source.source.path!r}")
        size = len(ids)
        found_tokens += size
        long_enough += size >= length
        if found_tokens >= length and long_enough >= documents:
            return
    if not found_documents:
        raise BadInputError(f"{source.field_path}.path: {source.source.path!r} ({source.part}) holds no documents")
    if found_tokens < length:
        raise BadInputError(
            f"{source.field_path}.path: {source.source.path!r} ({source.part}) has {found_tokens} tokens, fewer than "
            f"one sequence of {field} {length}"
        )
    raise BadInputError(
        f"calibration.num_sequences: is {documents}, but only {long_enough} of the {found_documents} documents of "
        f"{source.source.path!r} ({source.part}) have {field} {length} tokens"
    )
