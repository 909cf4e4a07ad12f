"""The discrete search space and what a search needs of a cluster."""

from dataclasses import replace

import pytest

from shortened_llm.config import Control, ExperimentConfig, parse_config
from shortened_llm.data.sources import text_roles
from shortened_llm.errors import last_line
from shortened_llm.pruning.plan import choices, dense_plan, make_plans, one_of_each_target
from shortened_llm.records import (
    EvalScores,
    ModelRef,
    ModelSize,
    PrunePlan,
    RetrainedModel,
    TokenDataset,
    TokenMixture,
    TrainingData,
    TrialResult,
    UnitScores,
)
from shortened_llm.search.space import SearchSpace, distinct
from shortened_llm.search.strategies.equal_seconds import propose_equal_seconds
from shortened_llm.search.strategies.grid import propose_grid
from shortened_llm.search.strategies.strategy import Candidates, Outcomes
from shortened_llm.search.units import selection_units
from tests.conftest import keeping

TOKENS = TokenMixture(
    parts=(TokenDataset(url="/t", fingerprint="t", files=(), num_sequences=256, sequence_length=128, num_documents=3),)
)
DATA = TrainingData(corpus=TOKENS, instructions=TOKENS, validation=None)
SIZE = ModelSize(block_parameters=(10,) * 8, other_parameters=20, bytes_per_parameter=4)


@pytest.fixture
def space(tiny_config: ExperimentConfig, tiny_model: ModelRef) -> SearchSpace:
    return SearchSpace(
        dense=replace(tiny_model, fingerprint="dense"),
        data=DATA,
        retraining=tiny_config.retraining,
        selection=selection_units(tiny_config, text_roles(tiny_config)),
        dtype="float32",
        export_dtype="float32",
    )


def plans(config: ExperimentConfig, *orders: tuple[int, ...]):
    scores = [
        UnitScores(
            criterion=f"criterion{index}", scores=(0.0,) * 8, order=order, standard_errors=None, protected=(0, 7),
            dense_perplexity=None, protocol="", fingerprint="",
        )
        for index, order in enumerate(orders)
    ]  # fmt: skip
    return make_plans(choices(config.search, scores, SIZE), SIZE)


def test_one_trial_per_distinct_plan_and_learning_rate(tiny_values: dict, space: SearchSpace) -> None:
    tiny_values["retraining"]["cpt"]["learning_rate"] = [1e-4, 3e-4]
    config = parse_config(tiny_values)
    space = replace(space, retraining=config.retraining)
    trials = space.trials(plans(config, (1, 2, 3, 4, 5, 6, 0, 7), (2, 1, 3, 4, 5, 6, 0, 7), (5, 6, 1, 2, 3, 4, 0, 7)))
    assert [(trial.plan.removed_blocks, trial.learning_rate) for trial in trials] == [
        ((1, 2), 1e-4), ((1, 2), 3e-4), ((5, 6), 1e-4), ((5, 6), 3e-4),
    ]  # fmt: skip
    assert len({trial.fingerprint for trial in trials}) == 4
    assert trials[0].name == "criterion0+criterion1 25% cpt lr 0.0001 seed 0"


def test_a_trial_is_what_changes_its_numbers(tiny_config: ExperimentConfig, space: SearchSpace) -> None:
    def fingerprint(space: SearchSpace) -> str:
        return space.trials(plans(tiny_config, (1, 2, 3, 4, 5, 6, 0, 7)))[0].fingerprint

    (part,) = TOKENS.parts
    moved = replace(TOKENS, parts=(replace(part, url="/elsewhere"),))
    same = replace(space, dense=replace(space.dense, url="/elsewhere"), data=replace(DATA, corpus=moved))
    assert fingerprint(same) == fingerprint(space)
    for other in (
        replace(space, dtype="bfloat16"),
        replace(space, dense=replace(space.dense, fingerprint="other")),
        replace(space, data=replace(DATA, corpus=replace(TOKENS, parts=(replace(part, fingerprint="other"),)))),
        replace(space, data=replace(DATA, corpus=replace(TOKENS, weights=(1.0,)))),
        replace(space, selection=()),
    ):
        assert fingerprint(other) != fingerprint(space)


ALL = ["none", "cpt", "lora", "cpt_lora", "distill", "last_blocks"]
ORDER = (1, 2, 3, 4, 5, 6, 0, 7)


def space_of(values: dict, space: SearchSpace, **retraining: object) -> SearchSpace:
    values["retraining"] |= retraining
    return replace(space, retraining=parse_config(values).retraining)


def test_every_method_rate_and_seed_is_a_trial(
    tiny_values: dict, tiny_config: ExperimentConfig, space: SearchSpace
) -> None:
    space = space_of(
        tiny_values, space, methods=ALL, seed=[0, 1],
        cpt={"learning_rate": [1e-4, 3e-4]}, lora={"learning_rate": [1e-3, 3e-3, 1e-2]},
    )  # fmt: skip
    trials = space.trials(plans(tiny_config, ORDER))
    counts = {method: sum(trial.method == method for trial in trials) for method in ALL}
    # The untrained model has no rate and no seed.
    assert counts == {"none": 1, "cpt": 4, "lora": 6, "cpt_lora": 12, "distill": 2, "last_blocks": 2}
    for trial in trials:
        assert sum(recipe.num_steps for recipe in trial.recipes) == (0 if trial.method == "none" else 8)
        assert bool(space.runs(trial)) == (trial.method != "none")
    (both, *_) = [trial for trial in trials if trial.method == "cpt_lora"]
    assert [recipe.method for recipe in both.recipes] == ["cpt", "lora"]
    assert both.name == "criterion0 25% cpt_lora rank 8 lr 0.0001+0.001 seed 0"


def test_a_second_run_begins_at_the_first_one_s_model(
    tiny_values: dict, tiny_config: ExperimentConfig, space: SearchSpace
) -> None:
    space = space_of(tiny_values, space, methods=["cpt_lora"])
    (trial,) = space.trials(plans(tiny_config, ORDER))
    view = space.dense.view(keeping((0, 3, 4, 5, 6, 7)))
    runs = space.runs(trial)
    first = space.job(runs[0], view)
    made = view.exported(url="elsewhere", fingerprint=first.fingerprint, files=())
    second = space.job(runs[1], made)
    assert runs == (first.run, second.run)
    # What a job is known as before its model is there, it is known as when the model is.
    assert [replace(job, begins=None).run for job in (first, second)] == list(runs)


def test_each_ratio_has_its_budget_and_controls_have_all(tiny_values: dict, space: SearchSpace) -> None:
    tiny_values["search"] = {"ratios": [0.25, 0.5], "controls": ["dense", "random"]}
    tiny_values["retraining"]["tokens"] = {0.25: 4096, 0.5: 8192}
    config = parse_config(tiny_values)
    space = replace(space, retraining=config.retraining)
    pruned = plans(config, ORDER)
    assert {len(t.plan.removed_blocks): t.recipes[-1].tokens for t in space.trials(pruned)} == {2: 4096, 4: 8192}
    dense = space.controls("dense", [dense_plan(SIZE)])
    assert [(t.plan.removed_blocks, t.recipes[-1].tokens, t.control) for t in dense] == [
        ((), 4096, "dense"), ((), 8192, "dense"),
    ]  # fmt: skip


def test_a_control_that_is_a_candidate_too_is_both(tiny_config: ExperimentConfig, space: SearchSpace) -> None:
    pruned = plans(tiny_config, ORDER)
    specs = distinct((*space.trials(pruned), *space.controls("random", pruned), *space.trials(pruned)))
    assert [spec.control for spec in specs] == [None, "random"]
    assert len({spec.fingerprint for spec in specs}) == 1


def test_equal_seconds_scale_the_budget_by_the_speed(
    tiny_values: dict, tiny_config: ExperimentConfig, space: SearchSpace
) -> None:
    space = space_of(tiny_values, space, methods=["none", "cpt", "lora", "cpt_lora"], tokens=102_400, seed=[0, 1])
    specs = space.trials(plans(tiny_config, ORDER))
    seconds = {"cpt": 60.0, "lora": 40.0, "cpt_lora": 50.0}
    model = RetrainedModel(model=space.dense, tokens=1, seconds=1.0, accelerator_seconds=1.0, history=())
    results = {
        spec.fingerprint: TrialResult(
            fingerprint=spec.fingerprint, model=space.dense, before=EvalScores(), after=EvalScores(), seconds=0.0,
            runs=tuple(replace(model, seconds=seconds[spec.method] / len(spec.recipes)) for _ in spec.recipes),
        )
        for spec in specs
    }  # fmt: skip
    nothing = Candidates(plans=())
    timed = propose_equal_seconds(space, nothing, Outcomes(specs=specs, results=results))
    assert [(t.method, t.seed, [recipe.num_steps for recipe in t.recipes]) for t in timed] == [
        ("lora", 0, [150]), ("lora", 1, [150]), ("cpt_lora", 0, [60, 60]), ("cpt_lora", 1, [60, 60]),
    ]  # fmt: skip
    assert all(trial.equal_seconds for trial in timed)
    assert not {trial.fingerprint for trial in timed} & {spec.fingerprint for spec in specs}
    assert propose_equal_seconds(space, nothing, Outcomes(specs=specs, results={})) == ()


def test_the_last_line_of_a_remote_error_is_the_error() -> None:
    remote = RuntimeError("Training failed\n  File x\nshortened_llm.errors.NonFiniteLossError: loss is nan\n")
    assert last_line(remote) == "NonFiniteLossError: loss is nan"
    assert last_line(ValueError("plain words")) == "ValueError: plain words"


def test_scratch_has_one_trial_for_each_shape(tiny_values: dict, space: SearchSpace) -> None:
    tiny_values["search"] = {"ratios": [0.25, 0.5], "controls": ["scratch"]}
    config = parse_config(tiny_values)
    pruned = plans(config, ORDER, ORDER[::-1])
    controls: dict[Control, tuple[PrunePlan, ...]] = {"scratch": one_of_each_target(pruned)}
    specs = propose_grid(space, Candidates(plans=pruned, controls=controls), Outcomes(specs=(), results={}))
    of_scratch = [spec for spec in specs if spec.control == "scratch"]
    assert [(spec.plan.size.blocks, spec.method) for spec in of_scratch] == [(6, "scratch"), (4, "scratch")]
    assert len(specs) == len(pruned) + 2
