"""The whole of an experiment's configuration, and what a change of it means."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, field_validator, model_validator

from shortened_llm.config.base import OneOrSeveral, Runtime, alone
from shortened_llm.config.depth import DepthPruning
from shortened_llm.config.evaluation import NO_EVALUATION, EvaluationConfig
from shortened_llm.config.metric import check_metric
from shortened_llm.config.model import ModelConfig, StorageConfig
from shortened_llm.config.pruning import Pruning
from shortened_llm.config.resources import ResourcesConfig
from shortened_llm.config.retraining import NO_RETRAINING, RetrainingConfig
from shortened_llm.config.rounds import check_rounds
from shortened_llm.config.rungs import check_rungs
from shortened_llm.config.sampler import check_sampler, ranges, with_learning_rates
from shortened_llm.config.search import NO_SEARCH, SearchSection
from shortened_llm.config.text import CalibrationConfig
from shortened_llm.config.tracking import TrackingConfig
from shortened_llm.config.units import check_held_out, check_units
from shortened_llm.fields import Range, Section

EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class ExperimentConfig(Section):
    """One experiment."""

    experiment: str
    """Name of the experiment: letters, digits, - and _."""
    storage: Annotated[StorageConfig, Runtime] = StorageConfig()
    model: ModelConfig
    calibration: OneOrSeveral[CalibrationConfig]
    """Text that blocks are scored on; a list is an axis of the search."""
    pruning: OneOrSeveral[Pruning] = DepthPruning()
    """What is removed, and how it is chosen; a list is an axis of the search, each entry with its own criteria."""
    search: SearchSection = NO_SEARCH
    """What Ray Tune tries. jobs.score needs it only for criteria that search, such as greedy_ppl, and jobs.evaluate not
    at all."""
    retraining: RetrainingConfig = NO_RETRAINING
    """How a pruned model recovers. Unless given, nothing is trained; jobs.retrain needs it."""
    evaluation: EvaluationConfig = NO_EVALUATION
    """How models are scored. jobs.search and jobs.evaluate need it."""
    resources: Annotated[ResourcesConfig, Runtime] = ResourcesConfig()
    tracking: Annotated[TrackingConfig, Runtime] = TrackingConfig()

    @property
    def criteria(self) -> tuple[str, ...]:
        """Distinct criteria of all entries, in their order."""
        return tuple(dict.fromkeys(criterion for entry in self.prunings for criterion in entry.criteria))

    @property
    def reads_calibration(self) -> bool:
        """Whether any plan depends on calibration text."""
        return any(entry.reads_text(criterion) for entry in self.prunings for criterion in entry.criteria)

    @property
    def prunings(self) -> tuple[Pruning, ...]:
        """Every entry of `pruning`."""
        return self.pruning if isinstance(self.pruning, tuple) else (self.pruning,)

    @property
    def calibrations(self) -> tuple[CalibrationConfig, ...]:
        """Every entry of `calibration`."""
        return self.calibration if isinstance(self.calibration, tuple) else (self.calibration,)

    def num_rankings(self, unit: str) -> int:
        """Rankings of such units: criteria, those that read text once for each calibration."""
        read = [entry.reads_text(name) for entry in self.prunings if entry.unit == unit for name in entry.criteria]
        return sum(len(self.calibrations) if reads else 1 for reads in read)

    @property
    def ranges(self) -> dict[str, Range[Any]]:
        """Every range that a sampler chooses from, by field."""
        return ranges(self.search, self.retraining)

    @model_validator(mode="before")
    @classmethod
    def _learning_rates_are_searched(cls, values: object) -> object:
        return with_learning_rates(values)

    @field_validator("experiment")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not EXPERIMENT_NAME.fullmatch(name):
            raise ValueError("a name has 1 to 100 letters, digits, - and _, and starts with a letter or digit")
        return name

    @model_validator(mode="after")
    def _budgets_match_ratios(self) -> "ExperimentConfig":
        tokens, ratios = self.retraining.tokens, self.search.ratios
        if isinstance(tokens, dict) and isinstance(ratios, Range):
            raise ValueError(
                f"retraining.tokens is given for ratios {sorted(tokens)}, but search.ratios is a range; give one budget"
            )
        if isinstance(tokens, dict) and (set(tokens) != set(ratios) or self.search.removed_blocks):
            raise ValueError(
                f"retraining.tokens is given for ratios {sorted(tokens)}, but the search has ratios {sorted(ratios)} "
                f"and removed_blocks {list(self.search.removed_blocks)}; give one budget, or one for each ratio"
            )
        return self

    @model_validator(mode="after")
    def _targets_fit_units(self) -> "ExperimentConfig":
        check_units(self.prunings, self.search, self.retraining)
        check_held_out(self.prunings, self.calibrations)
        return self

    @model_validator(mode="after")
    def _controls_have_a_corpus(self) -> "ExperimentConfig":
        if self.search.controls and not self.retraining.uses_corpus:
            raise ValueError(
                f"search.controls is {list(self.search.controls)}, which train on retraining.data, but "
                + (
                    f"no method of {list(self.retraining.methods)} does; add cpt or drop them"
                    if "retraining" in self.model_fields_set
                    else "retraining is not given; give it or drop them"
                )
            )
        return self

    @model_validator(mode="after")
    def _time_has_a_reference(self) -> "ExperimentConfig":
        if self.search.equal_seconds and "cpt" not in self.retraining.methods:
            raise ValueError(
                f"search.equal_seconds is true, but retraining.methods is {list(self.retraining.methods)}; the time is "
                "that of cpt: add it"
            )
        return self

    @model_validator(mode="after")
    def _rungs_can_be_continued(self) -> "ExperimentConfig":
        check_rounds(self.search, self.retraining)
        check_rungs(self.search, self.retraining)
        return self

    @model_validator(mode="after")
    def _metric_is_measured(self) -> "ExperimentConfig":
        check_metric(self.search, self.evaluation.selection)
        return self

    @model_validator(mode="after")
    def _constraints_are_measured(self) -> "ExperimentConfig":
        constraints, report = self.search.constraints, self.evaluation.report
        if constraints is None:
            return self
        if constraints.max_latency_ratio is not None and not report.efficiency:
            raise ValueError(
                f"search.constraints.max_latency_ratio is {constraints.max_latency_ratio:g}, but "
                "evaluation.report.efficiency is false; set it"
            )
        names = [task.task for task in report.tasks]
        if unknown := [task for task in constraints.max_drop if task not in names]:
            raise ValueError(
                f"search.constraints.max_drop names {', '.join(unknown)}, but evaluation.report.tasks is {names}; add "
                "what is to be measured"
            )
        return self

    @model_validator(mode="after")
    def _budget_has_a_use(self) -> "ExperimentConfig":
        if self.search.budget is not None and not self.retraining.runs:
            raise ValueError("search.budget is given, but nothing is trained; give retraining or drop the budget")
        return self

    @model_validator(mode="after")
    def _ranges_are_sampled(self) -> "ExperimentConfig":
        check_sampler(self.search, self.retraining)
        return self

    @model_validator(mode="after")
    def _random_applies(self) -> "ExperimentConfig":
        for index, (path, entry) in enumerate(zip(entry_paths("pruning", self.prunings), self.prunings, strict=True)):
            used = "random" in entry.criteria or ("random" in self.search.controls and index == 0)
            if "random" in entry.model_fields_set and not used:
                raise ValueError(
                    f"options of random are given, but {path}.criteria is {list(entry.criteria)} and "
                    f"search.controls {list(self.search.controls)}; add 'random' to one or drop them"
                )
        return self

    @model_validator(mode="after")
    def _entries_differ(self) -> "ExperimentConfig":
        if len(set(self.calibrations)) < len(self.calibrations):
            raise ValueError("calibration: an entry is listed twice")
        if len(self.calibrations) > 1 and not self.reads_calibration:
            raise ValueError(f"calibration lists {len(self.calibrations)} texts, but no criterion of pruning reads any")
        seen: dict[str, list[dict[str, object]]] = {}
        for path, entry in zip(entry_paths("pruning", self.prunings), self.prunings, strict=True):
            for criterion in entry.criteria:
                if entry.settings(criterion) in seen.setdefault(criterion, []):
                    raise ValueError(f"{path}.criteria: another entry has {criterion!r} with the same settings")
                seen[criterion].append(entry.settings(criterion))
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "ExperimentConfig":
        retraining, resources = self.retraining, self.resources
        batches = {"retraining.global_batch_size": retraining.global_batch_size} if retraining.runs else {}
        if retraining.uses_instructions and retraining.instructions:
            batches["retraining.instructions.global_batch_size"] = retraining.instructions.global_batch_size
        for field, batch in batches.items():
            if batch < resources.max_workers:
                raise ValueError(f"{field} is {batch}, fewer sequences than resources.workers {resources.max_workers}")
            if resources.elastic:
                continue  # shares are padded, whatever the number of workers
            if batch % resources.max_workers:
                raise ValueError(f"{field} is {batch}, which resources.workers {resources.max_workers} does not divide")
            share = batch // resources.max_workers
            if share % min(share, retraining.micro_batch_size):
                raise ValueError(
                    f"{field} is {batch}, so that each of {resources.max_workers} worker(s) has {share} sequences, "
                    f"which retraining.micro_batch_size {retraining.micro_batch_size} does not divide"
                )
        return self

    @model_validator(mode="after")
    def _group_divides(self) -> "ExperimentConfig":
        group, resources = self.resources.shard_group, self.resources
        if group is not None and (resources.elastic or resources.max_workers % group):
            raise ValueError(
                f"resources.shard_group is {group}, but resources.workers is {list(resources.workers)}; give a fixed "
                "number of workers that it divides"
            )
        return self


def entry_paths(section: str, entries: Sequence[object]) -> tuple[str, ...]:
    """Where each entry of a section that may be a list stands in the configuration, for messages."""
    return (section,) if len(entries) == 1 else tuple(f"{section}.{index}" for index in range(len(entries)))


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changed_keys(stored: Mapping[str, object], config: ExperimentConfig) -> dict[str, tuple[object, object]]:
    """Keys whose values differ between a stored configuration (JSON form) and `config`: `{key: (stored, new)}`.

    Keys that only say where or how fast an experiment runs are left out; among these is the size of micro-batches
    unless the masks of a dropout, which are drawn for each of them, depend on it.
    """
    old, new = flatten(stored), flatten(config.model_dump(mode="json"))
    runtime = set(runtime_keys(ExperimentConfig))
    if config.retraining.drops_out:
        runtime.discard("retraining.micro_batch_size")
    # A field that did not exist when it was stored had its default.
    compared = old.keys() | flatten(config.model_dump(mode="json", exclude_defaults=True)).keys()
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(compared)
        if alone(old.get(key)) != alone(new.get(key)) and not any(f"{key}.".startswith(f"{one}.") for one in runtime)
    }


def runtime_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Fields of a section, and of those within, that say of themselves that they change no number: `Runtime`."""
    for name, field in section.model_fields.items():
        if Runtime in field.metadata:
            yield prefix + name
        elif inner := section_of(field.annotation):
            yield from runtime_keys(inner, f"{prefix}{name}.")


def section_of(annotation: object) -> type[BaseModel] | None:
    """The section that a field holds, alone or in a list; None where it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if section := section_of(argument):
            return section
    return None
