"""Whether what a search will cost can be had: its budget, and the memory of its GPUs."""

import math

from shortened_llm.config import ExperimentConfig, ResourcesConfig
from shortened_llm.errors import BadInputError, Faults
from shortened_llm.search.forecast import Forecast
from shortened_llm.search.memory import GIB, gpu_share


def check_forecast(config: ExperimentConfig, forecast: Forecast) -> None:
    """Refuse what can never run.

    Raises:
        BadInputError: the budget is smaller than the cheapest trial, and no trial has ended that it was spent on; or
            what a process holds all the time is more than its GPU has.
    """
    faults, cheapest = Faults(), forecast.cheapest
    budget = None if forecast.speeds.is_measured else config.search.budget
    with faults.gather():
        most = budget.most_accelerator_hours if budget else None
        if most is not None and (needed := cheapest.accelerator_hours or 0.0) > most:
            raise BadInputError(
                f"search.budget: allows {most:.3g} accelerator-hours, but the cheapest trial takes about {needed:.3g}; "
                "raise it, or set fewer retraining.tokens or a lower first rung"
            )
    with faults.gather():
        if budget and budget.hours is not None and (cheapest.seconds or 0.0) / 3600 > budget.hours:
            raise BadInputError(
                f"search.budget.hours: is {budget.hours:g}, but the cheapest trial trains for about "
                f"{(cheapest.seconds or 0.0) / 3600:.3g}; raise it, or set fewer retraining.tokens or more workers"
            )
    with faults.gather():
        memory, needs, gpus = forecast.gpu_memory, forecast.memory, config.resources.gpus_per_worker
        if memory is not None and gpus and needs is not None and needs.lasting > gpu_share(memory, gpus):
            raise BadInputError(
                f"resources.workers: {config.resources.min_workers} hold {needs.lasting / GIB:.3g} GiB of weights, "
                f"optimiser and gradients each, more than the {gpu_share(memory, gpus) / GIB:.3g} GiB of a GPU; give "
                "more workers or retraining.cpu_offload"
            )
    with faults.gather():
        _check_evaluator(config.resources, forecast)
    with faults.gather():
        _check_scorer(config.resources, forecast)
    faults.raise_any()


def _check_evaluator(resources: ResourcesConfig, forecast: Forecast) -> None:
    needs, memory, gpus = forecast.evaluator, forecast.gpu_memory, resources.gpus_per_evaluator
    if memory is not None and gpus and needs.lasting > gpu_share(memory, gpus):
        least = math.ceil(needs.lasting * max(1.0, gpus) / memory)
        raise BadInputError(
            f"resources.gpus_per_evaluator: {gpus:g} would hold {needs.lasting / GIB:.3g} GiB of the dense model's "
            f"weights each, more than the {gpu_share(memory, gpus) / GIB:.3g} GiB of a GPU; give at least {least}"
        )


def _check_scorer(resources: ResourcesConfig, forecast: Forecast) -> None:
    needs, memory, gpus = forecast.scorer, forecast.gpu_memory, resources.gpus_per_scorer
    if memory is not None and gpus and needs.lasting > gpu_share(memory, gpus):
        raise BadInputError(
            f"resources.gpus_per_scorer: {gpus:g} would hold blocks of {needs.lasting / GIB:.3g} GiB at a time, more "
            f"than the {gpu_share(memory, gpus) / GIB:.3g} GiB of a GPU; score on CPU (0)"
        )
