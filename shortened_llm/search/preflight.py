"""Answer bad input before anything is spent: every check that needs no accelerator and writes nothing.

What is wrong is told at once, as far as one fault does not hide another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from shortened_llm.config import ExperimentConfig, changed_keys, entry_paths
from shortened_llm.data.sources import TextRoles, text_roles
from shortened_llm.errors import BadInputError, Faults
from shortened_llm.evaluation.efficiency import check_lengths
from shortened_llm.evaluation.own_metric import load_metric
from shortened_llm.evaluation.task_check import check_tasks, load_task
from shortened_llm.models.directory import load_config
from shortened_llm.models.fresh import check_drawn
from shortened_llm.models.stage import inspect_model
from shortened_llm.models.view import size_of
from shortened_llm.pruning.target import Request, requests
from shortened_llm.records import ModelSize
from shortened_llm.retraining.recipe import chains
from shortened_llm.scoring.job import protected_blocks
from shortened_llm.search.cluster.trackers import check_tracking
from shortened_llm.search.dress_rehearsal import Toy, rehearse_export, rehearse_scoring, rehearse_training
from shortened_llm.search.preflight_texts import check_calibration, check_evaluation_texts, check_training_texts
from shortened_llm.search.stored.experiment import read_config
from shortened_llm.search.strategies.sampled import check_optuna
from shortened_llm.storage.store import Store

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
"""Endings of files that hold weights, whether they can be read or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's configuration tells."""

    model_config: PretrainedConfig
    size: ModelSize
    requests: tuple[Request, ...]
    """What the search asks for."""

    @property
    def num_blocks(self) -> int:
        return int(self.model_config.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding table."""
        return int(self.model_config.vocab_size)

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of blocks that may be removed, ascending."""
        return tuple(sorted({count for request in self.requests for count in request.counts}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringFacts(ModelFacts):
    """What the checks found out about the model and its texts."""

    tokenizer: PreTrainedTokenizerBase
    roles: TextRoles


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFacts(ScoringFacts):
    """What the checks of a whole search found out."""

    max_trials: int
    """Distinct trials, at most: equal plans are merged once scores are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline(ModelFacts):
    """What is known of a search whose model is not there yet."""

    max_trials: int
    """See `SearchFacts`."""
    unchecked: tuple[str, ...]
    """Checks that were left out, each with its reason."""


def check_scoring(config: ExperimentConfig, store: Store) -> ScoringFacts:
    """Check what scoring needs: storage, model, protected blocks, cuts and calibration text.

    Raises:
        BadInputError: with the field, the value and what is allowed, one line for each fault.
    """
    return _check(config, store)


def check_pruning(config: ExperimentConfig, store: Store) -> ScoringFacts:
    """Check what scoring needs, and that pruned models can be written.

    Raises:
        BadInputError: as `check_scoring`.
    """
    return _check(config, store, exports=True)


def check_retraining(config: ExperimentConfig, store: Store) -> ScoringFacts:
    """Check what scoring and retraining need.

    Raises:
        BadInputError: as `check_scoring`.
    """
    return _check(config, store, retrains=True, exports=True)


def check_evaluation(config: ExperimentConfig, store: Store) -> ScoringFacts:
    """Check what scoring blocks and evaluating models need.

    Raises:
        BadInputError: as `check_scoring`.
    """
    return _check(config, store, evaluates=True)


def check_search(config: ExperimentConfig, store: Store) -> SearchFacts:
    """Check everything that a configuration names.

    Raises:
        BadInputError: as `check_scoring`.
    """
    facts = _check(config, store, retrains=True, evaluates=True, exports=True, searches=True)
    return SearchFacts(
        model_config=facts.model_config,
        tokenizer=facts.tokenizer,
        roles=facts.roles,
        size=facts.size,
        requests=facts.requests,
        max_trials=_count_trials(config, facts.requests),
    )


def outline_search(config: ExperimentConfig, store: Store) -> Outline | None:
    """What a configuration and the model's config.json tell, where the model's directory holds no weights; None where
    it has some, or is no directory. For dry runs: what a search costs is asked before its model is fetched.

    Raises:
        BadInputError: as `check_search`, of what needs neither weights nor tokenizer.
    """
    directory = Path(config.model.path)
    if not (directory / "config.json").is_file() or any(WEIGHTS & {*file.suffixes} for file in directory.iterdir()):
        return None
    faults, model_config = Faults(), load_config(directory)
    size: ModelSize | None = None
    asked: tuple[Request, ...] = ()
    _check_settings(config, store, faults, retrains=True, evaluates=True, searches=True)
    with faults.gather():
        check_tasks(config.evaluation.report.tasks, config.evaluation.task_directory)
    with faults.gather():
        store.probe()
    with faults.gather():
        size = size_of(model_config, config.model.exported_dtype)
        asked = _requests(config, size)
    _check_context(config, model_config, faults)
    faults.raise_any()
    assert size is not None, "a fault was told"
    unchecked = [
        f"the weights and the tokenizer: {directory} holds no weights",
        "what texts and tasks hold, and each step of the job on a toy of the model: these need the tokenizer",
    ]
    try:
        text_roles(config)
    except BadInputError as error:
        unchecked += str(error).splitlines()
    return Outline(
        model_config=model_config, size=size, requests=asked, max_trials=_count_trials(config, asked),
        unchecked=tuple(unchecked),
    )  # fmt: skip


def _check(
    config: ExperimentConfig,
    store: Store,
    *,
    retrains: bool = False,
    evaluates: bool = False,
    exports: bool = False,
    searches: bool = False,
) -> ScoringFacts:
    faults = Faults()
    _check_settings(config, store, faults, retrains=retrains, evaluates=evaluates, searches=searches)
    if evaluates:
        _check_task_data(config, faults)
    facts = _scoring_facts(config, store, faults)
    if facts is not None:
        if retrains:
            check_training_texts(config, facts.roles, facts.tokenizer, facts.vocab_size, faults)
        if retrains or evaluates:
            check_evaluation_texts(config, facts.roles, facts.tokenizer, facts.model_config, faults)
        if evaluates:
            _check_models_tasks(config, facts, faults)
    faults.raise_any()
    assert facts is not None, "a fault was told"
    _rehearse(config, facts, trains=retrains, exports=exports)  # last: it takes seconds, and minutes for many experts
    return facts


def _check_settings(
    config: ExperimentConfig, store: Store, faults: Faults, *, retrains: bool, evaluates: bool, searches: bool
) -> None:
    """What can be told without model and texts."""
    if searches:
        with faults.gather():
            check_tracking(config.tracking)
        with faults.gather():
            check_unchanged(config, store)
        if config.search.sampler == "optuna":
            with faults.gather():
                check_optuna()
    if retrains:
        for method, budget in product(config.retraining.methods, config.retraining.budgets):
            with faults.gather():
                list(chains(config.retraining, method, budget, num_pairs=None))
    for path in config.evaluation.report.metrics if evaluates else ():
        with faults.gather():
            load_metric(path)


def _scoring_facts(config: ExperimentConfig, store: Store, faults: Faults) -> ScoringFacts | None:
    """None where a fault leaves nothing to check further."""
    found: tuple[PretrainedConfig, PreTrainedTokenizerBase] | None = None
    roles: TextRoles | None = None
    with faults.gather():
        store.probe()
    with faults.gather():
        found = inspect_model(config.model)
    with faults.gather():
        roles = text_roles(config)
    if found is None:
        return None
    model_config, tokenizer = found
    size: ModelSize | None = None
    asked: tuple[Request, ...] = ()
    with faults.gather():
        size = size_of(model_config, config.model.exported_dtype)
        asked = _requests(config, size)
    _check_context(config, model_config, faults)
    if roles is None or size is None:
        return None
    for documents, calibration in zip(roles.calibration, config.calibrations, strict=False):
        with faults.gather():
            check_calibration(calibration, documents, tokenizer, model_config)
    return ScoringFacts(model_config=model_config, tokenizer=tokenizer, roles=roles, size=size, requests=asked)


def _requests(config: ExperimentConfig, size: ModelSize) -> tuple[Request, ...]:
    asked: tuple[Request, ...] = ()
    num_blocks = len(size.block_parameters)
    for path, entry in zip(entry_paths("pruning", config.prunings), config.prunings, strict=True):
        protected = protected_blocks(entry, num_blocks)
        if len(protected) >= num_blocks:
            raise BadInputError(
                f"{path}.protect_first {entry.protect_first} and protect_last {entry.protect_last} "
                f"protect all {num_blocks} blocks"
            )
        asked = requests(config.search, size, protected)  # of all entries alike
    _check_sizes(config, size, asked)
    return asked


def _check_sizes(config: ExperimentConfig, size: ModelSize, asked: Sequence[Request]) -> None:
    """Check that some candidate may be as small as the constraints say, whichever blocks it loses."""
    most = config.search.constraints.max_bytes if config.search.constraints else None
    if most is None or not asked:
        return
    largest_first = sorted(range(len(size.block_parameters)), key=lambda block: -size.block_parameters[block])
    count = max(request.counts[-1] for request in asked)
    smallest = size.without(largest_first[:count]).num_bytes
    if smallest > most:
        raise BadInputError(
            f"search.constraints.max_bytes: is {most:,}, but the smallest candidate, without {count} blocks, has "
            f"{smallest:,}; raise it, or give larger search.ratios"
        )


def _check_context(config: ExperimentConfig, model_config: PretrainedConfig, faults: Faults) -> None:
    positions = getattr(model_config, "max_position_embeddings", None)
    paths = entry_paths("calibration", config.calibrations)
    lengths = {f"{p}.sequence_length": one.sequence_length for p, one in zip(paths, config.calibrations, strict=True)}
    if config.retraining.runs:
        lengths["retraining.sequence_length"] = config.retraining.sequence_length
    if config.retraining.uses_instructions and config.retraining.instructions is not None:
        lengths["retraining.instructions.max_length"] = config.retraining.instructions.max_length
    for field, length in lengths.items():
        with faults.gather():
            if positions and length > positions:
                raise BadInputError(f"{field}: is {length}, but the model's context has {positions} tokens")


def _rehearse(config: ExperimentConfig, facts: ScoringFacts, *, trains: bool, exports: bool) -> None:
    """Try the steps of the job on a toy of the model."""
    retraining = config.retraining
    with Toy(facts.model_config, facts.tokenizer) as toy:
        rehearse_scoring(toy, config.criteria)
        if trains and retraining.runs:
            for lora in retraining.adapters or (None,):
                rehearse_training(toy, lora=lora, isolate_documents=retraining.isolate_documents)
        if trains and ("scratch" in config.search.controls or retraining.draws_weights):
            check_drawn(toy.config)
        if exports:
            rehearse_export(toy)


def _check_task_data(config: ExperimentConfig, faults: Faults) -> None:
    for task in config.evaluation.report.tasks:
        with faults.gather():
            check_tasks((task,), config.evaluation.task_directory)
            load_task(task.task, config.evaluation.task_directory)


def _check_models_tasks(config: ExperimentConfig, facts: ScoringFacts, faults: Faults) -> None:
    """What the model must have for its tasks and timings."""
    evaluation = config.evaluation
    with faults.gather():
        check_tasks(evaluation.report.tasks, evaluation.task_directory, tokenizer=facts.tokenizer)
    if evaluation.report.efficiency:
        with faults.gather():
            check_lengths(facts.model_config, evaluation.efficiency)


def _count_trials(config: ExperimentConfig, asked: Sequence[Request]) -> int:
    """Trials where no two rankings choose the same blocks."""

    def of_methods(methods: Sequence[str], budget: int) -> int:
        return sum(len(list(chains(config.retraining, method, budget, num_pairs=None))) for method in methods)

    retraining, search = config.retraining, config.search
    budgets = [retraining.budget(request.target.ratio) for request in asked]
    count = sum(config.num_rankings * of_methods(retraining.methods, budget) for budget in budgets)
    if search.trials is not None:
        count = search.trials if config.ranges else min(search.trials, count)
    if "random" in search.controls:
        count += sum(of_methods(["cpt"], budget) for budget in budgets)
    if "scratch" in search.controls:
        count += sum(of_methods(["scratch"], budget) for budget in budgets)
    if "dense" in search.controls:
        count += sum(of_methods(["cpt"], budget) for budget in retraining.budgets)
    return count


def check_unchanged(config: ExperimentConfig, store: Store) -> None:
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
