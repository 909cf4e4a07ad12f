"""Answer bad input before anything is spent: every check that needs no accelerator and writes nothing.

What is wrong is told at once, as far as one fault does not hide another.
"""

from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from shortened_llm.config import DepthPruning, ExperimentConfig, WeightPruning, WidthPruning
from shortened_llm.data.sources import TextRoles, text_roles
from shortened_llm.errors import Faults
from shortened_llm.evaluation.efficiency import check_lengths
from shortened_llm.evaluation.task_check import check_tasks, load_task
from shortened_llm.models.fresh import check_drawn
from shortened_llm.models.stage import inspect_model
from shortened_llm.models.view import size_of
from shortened_llm.pruning.target import Request
from shortened_llm.records import ModelSize
from shortened_llm.search.preflight_settings import (
    ModelFacts,
    asked_sizes,
    check_context,
    check_settings,
    check_storage,
)
from shortened_llm.search.preflight_texts import check_calibration, check_evaluation_texts, check_training_texts
from shortened_llm.search.preflight_toy import (
    Toy,
    try_export,
    try_scoring,
    try_sublayers,
    try_training,
    try_weights,
    try_widths,
)
from shortened_llm.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(ModelFacts):
    """What the checks found out about the model and its texts."""

    tokenizer: PreTrainedTokenizerBase
    roles: TextRoles


def check_config(
    config: ExperimentConfig,
    store: Store,
    *,
    exports: bool = False,
    retrains: bool = False,
    evaluates: bool = False,
    searches: bool = False,
) -> Facts:
    """Check what scoring needs: storage, model, protected blocks, cuts and calibration text; and what else is done.

    Args:
        exports: models are written.
        retrains: models are retrained, and written.
        evaluates: models are evaluated.
        searches: all of it is done, in an experiment of its own name.

    Raises:
        BadInputError: with the field, the value and what is allowed, one line for each fault.
    """
    faults, retrains, evaluates = Faults(), retrains or searches, evaluates or searches
    with faults.gather():
        check_storage(config, store, searches=searches)
    check_settings(config, faults, retrains=retrains, evaluates=evaluates, searches=searches)
    if evaluates:
        _check_task_data(config, faults)
    facts = _scoring_facts(config, faults)
    if facts is not None:
        if retrains:
            check_training_texts(config, facts.roles, facts.tokenizer, facts.vocab_size, faults)
        if retrains or evaluates:
            check_evaluation_texts(config, facts.roles, facts.tokenizer, facts.model_config, faults)
        if evaluates:
            _check_models_tasks(config, facts, faults)
    faults.raise_any()
    assert facts is not None, "a fault was told"
    _try_on_toy(
        config, facts, trains=retrains, exports=exports or retrains
    )  # last: it takes seconds, and minutes for many experts
    return facts


def _scoring_facts(config: ExperimentConfig, faults: Faults) -> Facts | None:
    """None where a fault leaves nothing to check further."""
    found: tuple[PretrainedConfig, PreTrainedTokenizerBase] | None = None
    roles: TextRoles | None = None
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
        asked = asked_sizes(config, model_config, size)
    check_context(config, model_config, faults)
    if roles is None or size is None:
        return None
    for documents, calibration in zip(roles.calibration, config.calibrations, strict=False):
        with faults.gather():
            check_calibration(calibration, documents, tokenizer, model_config)
    return Facts(model_config=model_config, tokenizer=tokenizer, roles=roles, size=size, requests=asked)


def _try_on_toy(config: ExperimentConfig, facts: Facts, *, trains: bool, exports: bool) -> None:
    """Try the steps of the job on a toy of the model."""
    retraining = config.retraining
    with Toy(facts.model_config, facts.tokenizer) as toy:
        depth = [entry for entry in config.prunings if isinstance(entry, DepthPruning)]
        try_scoring(toy, dict.fromkeys(name for entry in depth for name in entry.criteria))
        for entry in config.prunings:
            if isinstance(entry, WidthPruning):
                try_widths(toy, entry)
            if isinstance(entry, WeightPruning):
                try_weights(toy, entry)
        if any(entry.unit == "sublayer" for entry in config.prunings):
            try_sublayers(toy)
        if trains and retraining.runs:
            for lora in retraining.adapters or (None,):
                try_training(toy, lora=lora, isolate_documents=retraining.isolate_documents)
        if trains and ("scratch" in config.search.controls or retraining.draws_weights):
            check_drawn(toy.config)
        if exports:
            try_export(toy)


def _check_task_data(config: ExperimentConfig, faults: Faults) -> None:
    directory = config.evaluation.task_directory
    for field, tasks in config.evaluation.tasks.items():
        for task in tasks:
            with faults.gather():
                load_task(task.task, directory, field)


def _check_models_tasks(config: ExperimentConfig, facts: Facts, faults: Faults) -> None:
    """What the model must have for its tasks and timings."""
    evaluation = config.evaluation
    for field, tasks in evaluation.tasks.items():
        with faults.gather():
            check_tasks(tasks, evaluation.task_directory, field, tokenizer=facts.tokenizer)
    if evaluation.report.efficiency:
        with faults.gather():
            check_lengths(facts.model_config, evaluation.efficiency)
