"""A user's own measure: a function of a model and its tokenizer that returns a number."""

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.fingerprint import file_sha256
from shortened_llm.records import MetricScore

STAGE_VERSION = 3
FIELD = "evaluation"
"""The section that a metric is of, where nobody knows the field."""


def load_metric(path: str, field: str = FIELD) -> Callable[..., Any]:
    """Import the function that `path` names.

    Args:
        path: `module:function`; the module must be importable in every process that evaluates.
        field: the field of the configuration that names it, for messages.

    Raises:
        BadInputError: no such module or function, or one that cannot be called with (model, tokenizer).
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # The module is the user's: importing it may raise anything.
        raise BadInputError(
            f"{field}: {path!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); it must "
            "lie on PYTHONPATH or in the directory that the job is submitted with"
        ) from error
    metric = getattr(module, name, None)
    if not callable(metric):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise BadInputError(
            f"{field}: {path!r}: {module_name!r} has no function {name!r}; it has {', '.join(known) or 'none'}"
        )
    try:
        inspect.signature(metric).bind(None, None)
    except (TypeError, ValueError) as error:  # ValueError: a built-in without a signature
        raise BadInputError(
            f"{field}: {path!r} cannot be called with two arguments, (model, tokenizer): {error}"
        ) from error
    return metric


def metric_identity(path: str) -> dict[str, object]:
    """What the metric's numbers depend on beside the model: its name, and its source file as it is now."""
    return {"stage": STAGE_VERSION, "metric": path, "source": file_sha256(_source(path))}


def measure_metric(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> MetricScore:
    """Call the user's function.

    Raises:
        BadInputError: as `load_metric`, or the function returns no number.
        NonFiniteLossError: it returns NaN or infinity.
    """
    result = load_metric(path)(model, tokenizer)
    try:
        value = float(result)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{FIELD}: {path!r} returned {result!r}; it must return one number") from error
    if not math.isfinite(value):
        raise NonFiniteLossError(f"metric {path} is {value}")
    version = getattr(importlib.import_module(path.partition(":")[0]), "__version__", None)
    source = f"source {file_sha256(_source(path))[:8]}"
    return MetricScore(
        unit="",  # set by `store_score`
        name=path,
        value=value,
        protocol=f"version {version}, {source}" if version else source,
    )


def _source(path: str) -> Path:
    metric = load_metric(path)
    function = metric if inspect.isroutine(metric) or inspect.isclass(metric) else type(metric)
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        source = None
    if source is None:
        raise BadInputError(f"{FIELD}: {path!r} has no Python source file, by which its results would be told apart")
    return Path(source)
