"""Score models beside the dense one; needs no Ray."""

import json
import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from http.client import HTTPException
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from jobs.cli import make_parser, open_store, output_directory, parse_command, run
from shortened_llm.config import ExperimentConfig, ModelConfig
from shortened_llm.errors import BadInputError, brief, last_line
from shortened_llm.evaluation.efficiency import check_lengths
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.serving import ServerError, measure_serving, vllm_command
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.evaluation.table import comparison_table
from shortened_llm.evaluation.units import EfficiencyUnit, Unit
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER, about
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.models.directory import model_directory
from shortened_llm.models.stage import inspect_model, stage_model
from shortened_llm.records import EvalScores, EvaluatedModel, MissingScore, ModelRef, Transform, kept_blocks, to_json
from shortened_llm.reporting.card import PRUNING
from shortened_llm.search.preflight import Facts, check_config
from shortened_llm.search.units import choice_units, report_units, selection_units
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import exists, join, read_bytes


def main(arguments: Sequence[str]) -> None:
    """A table goes to stderr; stdout has the JSON of each model's scores, one line each, the dense model first."""
    parser = make_parser("evaluate", "Score models beside the dense one.")
    parser.add_argument(
        "--candidate",
        metavar="DIR",
        type=model_path,
        action="append",
        default=[],
        help="directory or URL of a model to compare with the dense one; once for each",
    )
    parser.add_argument("--efficiency", action="store_true", help="also measure speed and memory")
    parser.add_argument("--vllm", action="store_true", help="also measure speed behind vLLM, where that is installed")
    parser.add_argument(
        "--output", metavar="DIR", type=output_directory, help="also write DIR/scores.json, a list of all"
    )
    config, flags = parse_command(parser, arguments, ["evaluation"])
    candidates: list[str] = flags.candidate
    store = open_store(config)
    facts = check_config(config, store, evaluates=True)
    if flags.efficiency or flags.vllm:
        check_lengths(facts.model_config, config.evaluation.efficiency)
    if flags.vllm:
        vllm_command()
        if not candidates:
            raise BadInputError("--vllm: compares a model with the dense one; give --candidate DIR too")
    for directory in candidates:
        check_model(directory, facts)
    if flags.dry_run:
        print(f"would score {', '.join((config.model.path, *candidates))}")
        return
    prepare_cpu(fair_threads(1))
    has_gpu, wanted = torch.cuda.is_available(), math.ceil(config.resources.gpus_per_evaluator)
    num_gpus = max(1, min(wanted, torch.cuda.device_count()))
    loaded = LoadedModels(config.model.dtype, "cuda" if has_gpu else "cpu", num_gpus=num_gpus)
    dense = stage_model(config.model, store)
    selection = selection_units(config, facts.roles)
    report = (*report_units(config, facts.roles), *choice_units(config, facts.roles, dense))
    every: list[EvaluatedModel] = []
    for path in (config.model.path, *candidates):
        ref = _candidate(path, dense, store) if every else dense
        timing: list[Unit] = []
        # The dense model is timed in the same turns as each other one; by itself only where there is no other.
        if flags.efficiency and (every or not candidates):
            timing.append(EfficiencyUnit(settings=config.evaluation.efficiency, dense=dense))

        def scores(units: Sequence[Unit], path: str = path, ref: ModelRef = ref) -> EvalScores:
            with about(path):
                return evaluate(ref, units, store, loaded, batch_size=config.evaluation.batch_size)

        found = EvaluatedModel(
            model=path,
            name=card_of(path).get("name") if every else None,
            ref=ref,
            selection=scores(selection),
            report=scores([*report, *timing]),
        )
        if flags.vllm and every:
            loaded.hold()  # the accelerator is for the servers
            found = with_serving(found, dense, config)
        every.append(found)
        print(to_json(every[-1], indent=None), flush=True)
        if flags.output:
            flags.output.mkdir(parents=True, exist_ok=True)
            (flags.output / "scores.json").write_text(f"[{', '.join(to_json(one, indent=None) for one in every)}]\n")
    print(comparison_table(every), file=sys.stderr)
    if missing := [one for model in every for one in (*model.selection.missing, *model.report.missing)]:
        raise RuntimeError(f"{len(missing)} missing: " + "; ".join(f"{one.name}: {one.cause}" for one in missing))


def model_path(path: str) -> str:
    """The type of `--candidate`: as `model.path` is read."""
    try:
        return ModelConfig(path=path).path
    except ValidationError as error:
        raise ArgumentTypeError(error.errors()[0]["msg"]) from None  # without the value, which may hold keys


def with_serving(found: EvaluatedModel, dense: ModelRef, config: ExperimentConfig) -> EvaluatedModel:
    """The model with its speed behind servers, or with the cause why there is none."""
    try:
        served = measure_serving(
            model_directory(dense), model_directory(found.ref), config.evaluation.efficiency, dtype=config.model.dtype
        )
    except (ServerError, OSError, ValueError, HTTPException) as error:  # what a server that dies or errs leads to
        unit = fingerprint({"serving": config.evaluation.efficiency})
        lost = MissingScore(unit=unit, name="speed behind vLLM", cause=last_line(error))
        return replace(found, report=replace(found.report, missing=(*found.report.missing, lost)))
    return replace(found, serving=served)


def check_model(path: str, dense: Facts) -> None:
    """Check that `--candidate` can be loaded and compared.

    Raises:
        BadInputError: it is no model with the dense model's tokenizer, or its card is of another.
    """
    try:
        config, tokenizer = inspect_model(ModelConfig(path=path))
    except BadInputError as error:
        raise BadInputError(f"--candidate: {str(error).removeprefix('model.path: ')}") from None
    if config.vocab_size != dense.vocab_size or tokenizer.get_vocab() != dense.tokenizer.get_vocab():
        raise BadInputError(
            f"--candidate: {path!r} has a vocabulary of {config.vocab_size} that is not the dense model's of "
            f"{dense.vocab_size}; scores of different tokenizers cannot be compared"
        )
    kept = kept_blocks(origin_of(path) or (), config.num_hidden_layers)
    if len(kept) != config.num_hidden_layers or not set(kept) <= set(range(dense.num_blocks)):
        raise BadInputError(
            f"--candidate: {join(path, PRUNING)} says that blocks {list(kept)} were kept, but the model has "
            f"{config.num_hidden_layers} blocks and the dense one {dense.num_blocks}"
        )


def _candidate(path: str, dense: ModelRef, store: Store) -> ModelRef:
    """The model of `--candidate`, with what its card says of its origin."""
    ref = stage_model(ModelConfig(path=path), store)
    if ref.fingerprint == dense.fingerprint:
        return ref
    origin = origin_of(path)
    if origin is None:
        LOGGER.warning("%s has no %s: its ideal speed-up is not known", path, PRUNING)
    return replace(ref, origin=origin)


def origin_of(place: str) -> tuple[Transform, ...] | None:
    """What was done to the dense model, as the card of a model says; None where it has none.

    Raises:
        BadInputError: the card does not say.
    """
    card = card_of(place)
    return tuple(card["origin"]) if card else None


def card_of(place: str) -> dict[str, Any]:
    """What the card of a model says, for programs; empty where it has none.

    Raises:
        BadInputError: it does not say what was done to the dense model.
    """
    card = join(place, PRUNING)
    if not exists(card):
        return {}
    try:
        found = dict(json.loads(read_bytes(card)))
        return {**found, "origin": TypeAdapter(tuple[Transform, ...]).validate_python(found["origin"])}
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise BadInputError(f"--candidate: {card} does not say which blocks were kept ({brief(error)})") from None


if __name__ == "__main__":
    run(main)
