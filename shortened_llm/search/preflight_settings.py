"""What can be told of a configuration without weights, tokenizer and texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from transformers import PretrainedConfig

from shortened_llm.config import ExperimentConfig, TaskConfig, WeightPruning, WidthPruning, changed_keys, entry_paths
from shortened_llm.errors import BadInputError, Faults
from shortened_llm.evaluation.own_metric import load_metric
from shortened_llm.evaluation.task_check import check_has_bits_per_byte, check_tasks
from shortened_llm.logs import LOGGER
from shortened_llm.models.axes import axes_of, widths_of
from shortened_llm.models.biases import layers_without_bias
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import empty_model
from shortened_llm.models.linears import linear_inputs
from shortened_llm.models.moments import layer_of
from shortened_llm.pruning.target import Request, requests
from shortened_llm.pruning.weight.pattern import parse_pattern
from shortened_llm.pruning.weight.target import weight_targets
from shortened_llm.pruning.width import typical
from shortened_llm.records import ModelSize, PruneUnit, removal
from shortened_llm.records.objective import BITS_PER_BYTE
from shortened_llm.retraining.recipe import chains
from shortened_llm.scoring.job import narrowing_of, protected_units
from shortened_llm.search.cluster.trackers import check_tracking
from shortened_llm.search.stored.experiment import read_config
from shortened_llm.search.strategies.sampled import check_optuna
from shortened_llm.storage.store import Store


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
    def counts(self) -> dict[PruneUnit, tuple[int, ...]]:
        """Numbers of units that may be removed, ascending."""
        found: dict[PruneUnit, set[int]] = {}
        for request in self.requests:
            found.setdefault(request.unit, set()).update(request.counts)
        return {unit: tuple(sorted(counts)) for unit, counts in found.items()}


def check_storage(config: ExperimentConfig, store: Store, *, searches: bool) -> None:
    """Check that the storage can be written, and that an experiment of this name is the same one; raises
    `BadInputError`."""
    store.probe()
    if searches:
        check_unchanged(config, store)


def check_settings(
    config: ExperimentConfig, faults: Faults, *, retrains: bool, evaluates: bool, searches: bool
) -> None:
    """What can be told without model and texts."""
    if searches:
        with faults.gather():
            check_tracking(config.tracking)
        if config.search.sampler == "optuna":
            with faults.gather():
                check_optuna()
    if retrains:
        for method, budget in product(config.retraining.methods, config.retraining.budgets):
            with faults.gather():
                list(chains(config.retraining, method, budget, num_pairs=None))
    if searches and config.search.metric.endswith(BITS_PER_BYTE):
        with faults.gather():
            task, directory = config.search.metric.removesuffix(BITS_PER_BYTE), config.evaluation.task_directory
            check_tasks((TaskConfig(task=task),), directory, "search.metric")
            check_has_bits_per_byte(task, directory, "search.metric")
    for field, tasks in config.evaluation.tasks.items() if evaluates else ():
        for one in tasks:
            with faults.gather():
                check_tasks((one,), config.evaluation.task_directory, field)
    for field, metrics in config.evaluation.metrics.items() if evaluates else ():
        for path in metrics:
            with faults.gather():
                load_metric(path, field)


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


def asked_sizes(config: ExperimentConfig, model_config: PretrainedConfig, size: ModelSize) -> tuple[Request, ...]:
    """What the search asks for, of each unit that is removed.

    Raises:
        BadInputError: naming the field.
    """
    asked: dict[PruneUnit, tuple[Request, ...]] = {}
    num_blocks = len(size.block_parameters)
    for path, entry in zip(entry_paths("pruning", config.prunings), config.prunings, strict=True):
        if isinstance(entry, WidthPruning):
            asked["width"] = requests(config.search, size, (), "width")
            check_narrowing(model_config, path, entry, asked["width"], size)
            continue
        if isinstance(entry, WeightPruning):
            wanted = requests(config.search, size, (), "weight")
            targets = weight_targets(entry.pattern, (request.target for request in wanted), size)
            own = (Request(target=target, unit="weight", counts=()) for target in targets)
            asked["weight"] = tuple(dict.fromkeys((*asked.get("weight", ()), *own)))
            for layer, columns in linear_inputs(find_blocks(empty_model(model_config))[0]).items():
                parse_pattern(entry.pattern, 0.0).check(columns, layer)
            continue
        if entry.unit == "sublayer" and size.part_parameters is None:
            raise BadInputError(
                f"{path}.unit: is 'sublayer', but the blocks of this architecture do not have one attention and one "
                "MLP each; use block"
            )
        protected = protected_units(entry, num_blocks)
        if len(protected) >= len(size.of_units(entry.unit)):
            raise BadInputError(
                f"{path}.protect_first {entry.protect_first} and protect_last {entry.protect_last} "
                f"protect all {num_blocks} blocks"
            )
        asked[entry.unit] = requests(config.search, size, protected, entry.unit)  # of all such entries alike
    found = tuple(request for of_unit in asked.values() for request in of_unit)
    _check_sizes(config, size, found)
    return found


def check_narrowing(
    model_config: PretrainedConfig, path: str, entry: WidthPruning, asked: Sequence[Request], size: ModelSize
) -> None:
    """Check that it is known where heads and channels lie, and that each ratio can be met.

    Raises:
        BadInputError: naming the field.
    """
    widths, reason = widths_of(model_config), axes_of(model_config).groups
    if isinstance(reason, str) and entry.parts != "mlp":
        raise BadInputError(
            f"{path}.parts: is {entry.parts!r}, but the heads of {model_config.model_type} models cannot go: {reason}; "
            "allowed is mlp"
        )
    if not narrowing_of(entry).cut(len(size.block_parameters)):
        raise BadInputError(
            f"{path}.protect_first {entry.protect_first} and protect_last {entry.protect_last} protect all "
            f"{len(size.block_parameters)} blocks"
        )
    if entry.round_to >= widths.channels:
        raise BadInputError(f"{path}.round_to: is {entry.round_to}, but blocks have {widths.channels} channels")
    cut = [layer_of(output.tensor) for output in axes_of(model_config).outputs_of(entry.parts)]
    if entry.bias and (without := layers_without_bias(model_config, cut)):
        LOGGER.warning(
            "%s.bias: the configuration of %s models has no field for a bias of %s, which will have none",
            path, model_config.model_type, " and ".join(without),
        )  # fmt: skip
    for request in asked:
        typical((widths.groups, widths.channels), narrowing_of(entry), request.target, size)


def _check_sizes(config: ExperimentConfig, size: ModelSize, asked: Sequence[Request]) -> None:
    """Check that each round removes a block, and that some candidate may be as small as the constraints say, whichever
    blocks it loses. Heads and channels go to the size that is asked for, and are not counted here."""
    every, asked = asked, [request for request in asked if request.counts]
    if not asked:
        return
    fewest, rounds = min(asked, key=lambda request: request.counts[0]), max(config.search.rounds)
    if rounds > fewest.counts[0]:
        raise BadInputError(
            f"search.rounds: has {rounds}, but {fewest.target.name} removes {fewest.counts[0]} {fewest.unit}s; in each "
            "round at least one goes"
        )
    most = config.search.constraints.max_bytes if config.search.constraints else None
    if most is None or len(asked) < len(every):
        return
    smallest, request = min(((_smallest(one, size), one) for one in asked), key=lambda found: found[0])
    if smallest > most:
        raise BadInputError(
            f"search.constraints.max_bytes: is {most:,}, but the smallest candidate, without {request.counts[-1]} "
            f"{request.unit}s, has {smallest:,}; raise it, or give larger search.ratios"
        )


def _smallest(request: Request, size: ModelSize) -> int:
    """Bytes of the smallest model that a request may lead to."""
    sizes = size.of_units(request.unit)
    largest_first = sorted(range(len(sizes)), key=lambda unit: -sizes[unit])
    removed = largest_first[: request.counts[-1]]
    return size.after(removal(request.unit, removed, len(size.block_parameters))).num_bytes


def check_context(config: ExperimentConfig, model_config: PretrainedConfig, faults: Faults) -> None:
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
