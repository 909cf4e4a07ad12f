"""A method is one file and one row: what a row says is all that config, recipes and training need to know of it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from shortened_llm.config import ExperimentConfig, retraining_section
from shortened_llm.methods import METHODS
from shortened_llm.methods.method import Method, ModelParts, OptimizerOptions, alone
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import plain_name
from shortened_llm.records import Recipe, from_json, to_json
from shortened_llm.retraining.recipe import chains
from shortened_llm.retraining.train import train
from tests.conftest import MakeJob
from tests.retraining.conftest import Recorder


class NormsOptions(OptimizerOptions):
    """The norms' weights alone."""

    final: bool = True
    """Whether the norm before the head is trained too."""


def norms(parts: ModelParts, options: NormsOptions) -> Iterable[Any]:
    within = [module for block in parts.blocks for module in block.modules() if "Norm" in type(module).__name__]
    return (*within, parts.final_norm) if options.final else within


ROW = Method(
    options=NormsOptions, summary="norms alone", chains=alone("norms"), trained=norms,
    presets={"short": {"learning_rate": 2e-3}},
)  # fmt: skip


@pytest.mark.usefixtures("process_group")
def test_a_new_row_is_configured_trained_and_told_apart(
    make_job: MakeJob, tiny_config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny_config.retraining.model_dump(mode="json") | {"methods": ["norms"], "preset": "short"}
    pretraining = make_job()
    monkeypatch.setitem(METHODS, "norms", ROW)
    section = retraining_section(METHODS)
    with pytest.raises(ValidationError, match="finel"):
        section.model_validate(values | {"norms": {"finel": False}})
    config = section.model_validate(values | {"norms": {"final": False}})
    assert (config.uses_corpus, config.uses_instructions, config.adapters) == (True, False, ())
    ((recipe,),) = chains(config, "norms", 8192, num_pairs=None)
    assert (recipe.method, recipe.learning_rate, recipe.options) == ("norms", 2e-3, {"final": False})
    assert from_json(Recipe, to_json(recipe)) == recipe
    job = replace(pretraining, recipe=recipe, placement=config)
    other = replace(job, recipe=replace(recipe, options={"final": True}))
    assert len({job.fingerprint, other.fingerprint, pretraining.fingerprint}) == 3

    recorder = Recorder()
    model, _ = train(job, device=torch.device("cpu"), resume_from=None, host=recorder)
    start = dict(load_model(job.model, "float32").named_parameters())
    changed = {
        plain_name(name) for name, weight in model.named_parameters()
        if not torch.equal(weight.full_tensor(), start[plain_name(name)])
    }  # fmt: skip
    wanted = {name for name in start if ".layers." in name and "norm" in name}
    assert len(wanted) == 2 * job.model.num_loaded_blocks
    assert changed == wanted
    assert recorder.points[-1].loss < recorder.points[0].loss
