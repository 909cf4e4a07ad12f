"""What trials cost before they run: formulas against counts and measurements, and the cap that nothing passes."""

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from jobs.assets.random_model import SHAPES
from shortened_llm.config import BudgetConfig, ExperimentConfig, ResourcesConfig, RetrainingConfig, parse_config
from shortened_llm.models.directory import load_config
from shortened_llm.models.load import load_model
from shortened_llm.models.view import size_of
from shortened_llm.pruning.target import requests
from shortened_llm.records import ModelRef, RetrainedModel, TrialFailure, TrialSpec, accelerator_seconds
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.launch import CHECKPOINTS_KEPT
from shortened_llm.retraining.prepare import prepare_method
from shortened_llm.retraining.recipe import chains
from shortened_llm.search.budget import Allowance, over_budget
from shortened_llm.search.cluster.capacity import ACCELERATOR_TYPE, Capacity, Nodes
from shortened_llm.search.estimate import ANY, Estimate, Shapes, estimate, measured_speeds, trial_work
from shortened_llm.search.forecast import Speeds, accelerator_memory, forecast_search, known_speeds
from shortened_llm.search.memory import GIB, ProcessMemory, evaluator_memory, scorer_memory, worker_memory
from shortened_llm.search.planned import planned_trials
from shortened_llm.search.preflight_settings import ModelFacts
from shortened_llm.search.proposals import Proposals
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.status import describe_status, read_status
from shortened_llm.search.stored.experiment import Begun, publish_report, read_experiment, write_experiment
from shortened_llm.search.strategies.grid import propose_grid
from shortened_llm.search.strategies.strategy import Candidates
from shortened_llm.storage.layout import BEGUN
from shortened_llm.storage.store import Store
from tests.conftest import MakeJob
from tests.retraining.test_loop import Recorder, run
from tests.search.pipeline import Pipeline, small
from tests.search.test_rungs import RATES, RUNGS, candidates, nine
from tests.search.test_space import space

__all__ = ["candidates", "nine", "space"]
NO_NODES = Capacity(nodes=())


@pytest.mark.parametrize(
    ("method", "tolerance"), [("cpt", 1e-6), ("distill", 1e-6), ("last_blocks", 0.02), ("lora", 0.05)]
)
def test_the_arithmetic_is_that_of_the_operations_that_torch_runs(
    make_job: MakeJob, tiny_model: ModelRef, method: str, tolerance: float
) -> None:
    """A frozen first block needs no gradient of its inputs, which the formula does not leave out."""
    job = make_job(method)
    shape = Shapes(load_config(Path(tiny_model.url)), "float32").of(job.model.transforms, job.recipe)
    student = load_model(job.model, "float32")
    student.set_attn_implementation("eager")
    prepare_method(student, job.recipe, "float32")
    tokens = torch.randint(200, (1, job.recipe.sequence_length), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        logits = student(input_ids=tokens, use_cache=False).logits
        F.cross_entropy(logits[0], tokens[0]).backward()
        if job.teacher:
            teacher = load_model(job.teacher, "float32")
            teacher.set_attn_implementation("eager")
            with torch.no_grad():
                teacher(input_ids=tokens, use_cache=False)
    assert shape.flops_per_token * tokens.numel() == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_a_rung_costs_its_new_tokens_alone(nine: SearchSpace, candidates: Candidates, tiny_model: ModelRef) -> None:
    (spec, *_) = nine.trials(candidates.plans)
    shapes = Shapes(load_config(Path(tiny_model.url)), "float32")
    steps = []
    begun: dict[str, set[int]] = {}
    for share in RUNGS:
        at_rung = nine.at_rung(spec, share)
        (run,) = nine.runs(at_rung)
        (work,) = trial_work(at_rung, (run,), shapes, made=(), begun=begun)
        steps.append(work.tokens // run.recipe.tokens_per_step)
        assert work.flops == work.tokens * shapes.of(spec.plan.transforms, run.recipe).flops_per_token
        assert trial_work(at_rung, (run,), shapes, made={run.fingerprint}, begun=begun) == ()
        begun.setdefault(run.stable_fingerprint, set()).add(run.recipe.num_steps - run.recipe.decay_steps)
    assert steps == [10, 30 - 8, 100 - 24]


@pytest.mark.usefixtures("process_group")
def test_work_that_two_runs_share_is_paid_once(job: RetrainingJob, tiny_model: ModelRef) -> None:
    straight, resumed = Recorder(), Recorder()
    _, whole = run(job, straight)
    _, later = run(job, resumed, straight.checkpoints[0].directory)
    runs = [
        RetrainedModel(
            model=replace(tiny_model, fingerprint=name), tokens=progress.tokens, seconds=progress.seconds,
            accelerator_seconds=2 * progress.seconds, history=progress.history,
        )
        for name, progress in (("a", whole), ("b", later))
    ]  # fmt: skip
    resumed_at = next(point for point in whole.history if point.step == resumed.points[0].step - 1)
    assert 0 < resumed_at.seconds < later.seconds
    assert accelerator_seconds(runs) == pytest.approx(2 * (whole.seconds + later.seconds - resumed_at.seconds))
    assert accelerator_seconds([runs[0], runs[0]]) == pytest.approx(2 * whole.seconds)


@pytest.mark.parametrize(
    ("shape", "method", "options", "memory", "measured"),
    [
        ("1b", "cpt", {"micro_batch_size": 8}, 139, 49.4),
        ("1b", "cpt", {"micro_batch_size": 4}, 139, 40.0),
        ("1b", "cpt", {"micro_batch_size": 4}, 16, 37.1),  # which has logits in chunks of 512 tokens
        ("1b", "cpt", {"micro_batch_size": 8, "activation_checkpointing": True}, 16, 28.9),
        ("8b", "lora", {"micro_batch_size": 2, "lora": {"dropout": 0.0}}, 139, 53.9),
    ],
)
def test_memory_is_near_what_was_measured_on_an_h200(
    shape: str, method: str, options: dict, memory: int, measured: float
) -> None:
    """The figures of shortened_llm/retraining/README.md, of random weights: see tests/gpu/test_training.py."""
    sequences = 8 if method == "lora" else 16
    config = RetrainingConfig(
        methods=method, data={"path": "t.jsonl"}, tokens=10 * sequences * 2048, global_batch_size=sequences, **options
    )
    ((recipe,),) = chains(config, method, 10 * sequences * 2048, None)
    shapes = shapes_of(shape)
    found = worker_memory(
        shapes.student((), recipe), None, recipe, config, ResourcesConfig(gpus_per_worker=1), dtype="bfloat16",
        memory=memory * GIB,
    )  # fmt: skip
    assert found.peak / GIB == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("criterion", "measured"), [("ppl", 2.4), ("taylor", 1.8)])
def test_memory_of_scoring_is_near_what_was_measured_on_an_h200(
    criterion: str, measured: float, tiny_values: dict
) -> None:
    """The figures of shortened_llm/scoring/README.md, of 10 x 128 tokens: see tests/gpu/test_scoring.py."""
    config = of_a_gpu(tiny_values, criterion)
    found = scorer_memory(shapes_of("8b").dense, config, memory=139 * GIB)
    assert found.peak / GIB == pytest.approx(measured, rel=0.15)
    tight = scorer_memory(shapes_of("8b").dense, config, memory=2 * GIB)
    assert tight.lasting == found.lasting
    assert tight.peak <= found.peak


def test_an_evaluator_holds_the_dense_model_over_its_gpus(tiny_values: dict) -> None:
    dense, config = shapes_of("8b").dense, of_a_gpu(tiny_values, "ppl")
    weights = 2 * sum(weight.numel() for weight in dense.parameters())

    def memory(**resources: float) -> ProcessMemory:
        return evaluator_memory(
            dense, config.model_copy(update={"resources": ResourcesConfig(**resources)}), memory=80 * GIB
        )

    assert memory(gpus_per_evaluator=1).lasting == weights
    assert memory(gpus_per_evaluator=4).lasting == weights / 4
    assert memory(gpus_per_evaluator=4).passing == memory(gpus_per_evaluator=1).passing > 0


def of_a_gpu(tiny_values: dict, criterion: str) -> ExperimentConfig:
    tiny_values["pruning"]["criteria"] = [criterion]
    tiny_values["calibration"] |= {"num_sequences": 10, "sequence_length": 128}
    tiny_values["model"]["dtype"] = "bfloat16"
    return parse_config(tiny_values)


def shapes_of(name: str) -> Shapes:
    return Shapes(LlamaConfig(**SHAPES[name], tie_word_embeddings=False), "bfloat16")


def test_more_workers_hold_less_and_a_teacher_more(make_job: MakeJob, tiny_model: ModelRef) -> None:
    shapes = Shapes(load_config(Path(tiny_model.url)), "float32")

    def memory(workers: int, method: str) -> float:
        job = make_job(method)
        return worker_memory(
            shapes.student((), job.recipe), shapes.teacher() if job.recipe.distill else None, job.recipe, job.placement,
            ResourcesConfig(workers=workers), dtype="float32", memory=None,
        ).lasting  # fmt: skip

    assert memory(4, "cpt") == memory(1, "cpt") / 4
    # 12 bytes of state and 4 of gradient for each weight, 4 more of the teacher's.
    assert memory(1, "distill") == pytest.approx(memory(1, "cpt") * 20 / 16)


def model_facts(config: ExperimentConfig, model: ModelRef) -> ModelFacts:
    model_config = load_config(Path(model.url))
    size = size_of(model_config, config.model.exported_dtype)
    return ModelFacts(model_config=model_config, size=size, requests=requests(config.search, size, (0, 7), "block"))


def test_the_forecast_of_rungs_adds_up(tiny_values: dict, tiny_model: ModelRef, local_store: Store) -> None:
    tiny_values["search"]["rungs"] = list(RUNGS)
    tiny_values["pruning"]["criteria"] = ["ppl"]
    tiny_values["retraining"] |= {
        "tokens": 102_400, "cpt": {"learning_rate": list(RATES), "warmup_steps": 4, "decay_ratio": 0.2},
    }  # fmt: skip
    tiny_values["resources"]["accelerator_flops"] = 1e12
    config = parse_config(tiny_values)
    found = forecast_search(config, model_facts(config, tiny_model), local_store, NO_NODES)
    steps = [9 * 10, 3 * (30 - 8), 1 * (100 - 24)]
    assert [(rung.trials, rung.tokens) for rung in found.rungs] == [(9, 90 * 1024), (3, 66 * 1024), (1, 76 * 1024)]
    assert found.tokens == sum(steps) * 1024
    per_step = found.cheapest.accelerator_hours
    assert per_step is not None
    assert found.accelerator_hours == pytest.approx(per_step / 10 * sum(steps))
    assert found.hours == pytest.approx(found.accelerator_hours / 2)  # of two workers
    tiny_values["retraining"]["keep_stable_checkpoint"] = True
    config = parse_config(tiny_values)
    keeps = forecast_search(config, model_facts(config, tiny_model), local_store, NO_NODES)
    running = config.search.max_concurrent_trials * CHECKPOINTS_KEPT
    assert found.checkpoint_bytes / keeps.checkpoint_bytes == pytest.approx((5 + running) / (9 + running))


class Search:
    """A search with a budget whose trials train for real, when the test says so."""

    def __init__(self, pipeline: Pipeline, budget: BudgetConfig, *, started: float | None = None) -> None:
        self.pipeline, self.store = pipeline, pipeline.store
        self.experiment = replace(self.store, url=self.store.experiment_url(pipeline.config.experiment))
        self.shapes = Shapes(load_config(Path(pipeline.dense.url)), "float32")
        self.allowance = Allowance(
            budget=budget, space=pipeline.space, shapes=self.shapes, accelerators=1.0, speeds={},
            experiment=self.experiment, started=time.monotonic() if started is None else started,
        )  # fmt: skip
        self.proposals = Proposals(
            (propose_grid,), pipeline.space, pipeline.candidates, self.store, on_proposed=lambda _: None,
            refuses=self.allowance.refuses,
        )  # fmt: skip

    def begin(self) -> TrialSpec | None:
        spec = self.proposals.next()
        if spec is not None:
            begun = Begun(driver="test")
            self.experiment.write(BEGUN, spec.fingerprint, begun, identity={}, parents=())
        return spec

    def end(self, spec: TrialSpec) -> None:
        self.pipeline.trial(spec)
        self.proposals.end(spec.fingerprint, None)

    def report(self, spec: TrialSpec, *points: tuple[int, float]) -> None:
        """What Tune stores of a trial's training: steps and accelerator-hours."""
        place = Path(self.experiment.url) / "tune" / f"name-{spec.fingerprint}"
        place.mkdir(parents=True)
        lines = [
            {"step": step, "tokens": step, "loss": 1.0, "tokens_per_second": 1.0, "accelerator_hours": hours,
             "timestamp": 1} for step, hours in points
        ]  # fmt: skip
        (place / "result.json").write_text("\n".join(map(json.dumps, lines)))

    @property
    def spent(self) -> float:
        return self.allowance.spent(self.proposals.outcomes)


@pytest.fixture
def four(tiny_values: dict, local_store: Store) -> Pipeline:
    """Four trials that cost the same."""
    values = small(tiny_values)
    values["pruning"]["criteria"] = ["magnitude"]
    values["retraining"] |= {"methods": ["cpt"], "cpt": {"learning_rate": [1e-4, 2e-4, 3e-4, 4e-4]}}
    return Pipeline(parse_config(values), local_store)


@pytest.mark.usefixtures("process_group")
def test_nothing_begins_that_would_pass_the_cap_and_a_larger_one_goes_on(four: Pipeline) -> None:
    search = Search(four, BudgetConfig(accelerator_hours=1.0))
    first = search.begin()
    assert first is not None
    assert search.begin() is None  # nothing is known of the speed, so it runs alone
    assert not search.proposals.left_out
    search.end(first)
    cost = search.spent
    assert cost > 0

    small_one = Search(four, BudgetConfig(accelerator_hours=1.5 * cost))
    assert small_one.begin() is None
    assert small_one.proposals.is_finished
    others = {spec.fingerprint for spec in four.specs} - {first.fingerprint}
    assert set(small_one.proposals.left_out) == others
    for reason in small_one.proposals.left_out.values():
        needs = f"it needs about {cost:.3g} accelerator-hours"
        assert reason == f"{needs}, with {cost:.3g} of {1.5 * cost:.3g} spent or begun"
    assert "3 trials were left out" in small_one.allowance.note(small_one.proposals.outcomes, 3)

    larger = Search(four, BudgetConfig(cost=2.5 * cost * 3, hourly_price=3.0))
    second = larger.begin()
    assert second is not None
    assert larger.begin() is None  # the running one may yet cost less
    assert not larger.proposals.left_out
    assert not larger.proposals.is_finished
    larger.end(second)
    assert larger.spent > cost

    plenty = Search(four, BudgetConfig(accelerator_hours=1000 * cost))
    both = [plenty.begin(), plenty.begin()]
    for spec in both:
        assert spec is not None
        plenty.end(spec)
    assert plenty.begin() is None
    assert plenty.proposals.is_finished
    assert not plenty.proposals.left_out
    assert len(plenty.proposals.outcomes.results) == 4


@pytest.mark.usefixtures("process_group")
def test_the_report_says_what_was_left_out_and_why(four: Pipeline) -> None:
    first, *others = four.specs
    four.trial(first)
    reason = "it would end after 2 hours; the search may take 1"
    url = four.store.experiment_url(four.config.experiment)
    left_out = planned_trials(four.specs, {spec.fingerprint: reason for spec in others})
    write_experiment(four.store, replace(read_experiment(url), trials=left_out))
    page = Path(publish_report(four.store, read_experiment(url)))
    for text in (page.read_text(), (page.parent / "report.md").read_text()):
        assert "4 trials: 1 done, 3 left out" in text
        assert f"left out: {reason}" in text.replace("\\", "")
    rows = list(csv.DictReader((page.parent / "trials.csv").open()))
    assert sorted((row["status"], row["left_out"]) for row in rows) == [("done", "")] + 3 * [("left out", reason)]
    assert "left out: " + reason in describe_status(read_status(url))


@pytest.mark.usefixtures("process_group")
def test_the_speed_is_that_of_runs_that_have_ended(four: Pipeline) -> None:
    spec, other = four.specs[:2]
    four.trial(spec)
    shapes = Shapes(load_config(Path(four.dense.url)), "float32")
    experiment = read_experiment(four.store.experiment_url(four.config.experiment))
    done = [(one.spec, one.result) for one in experiment.trials if one.result]
    speeds = measured_speeds(done, shapes)
    ((_, result),) = done
    work = trial_work(other, four.space.runs(other), shapes, made=(), begun={})
    found = estimate(work, speeds, accelerators=1.0)
    assert found.seconds == pytest.approx(result.accelerator_seconds)
    assert speeds["cpt"] == speeds[ANY]
    forecast = forecast_search(four.config, model_facts(four.config, four.dense), four.store, NO_NODES)
    assert "measured" in forecast.speeds.source
    assert forecast.accelerator_hours == pytest.approx(4 * result.accelerator_seconds / 3600)
    search = Search(four, BudgetConfig(accelerator_hours=1.0))
    assert search.begin() == other
    assert search.spent == 0  # another experiment began the one that has ended


def test_speed_and_memory_of_a_gpu_follow_from_its_name(
    tiny_values: dict, tiny_model: ModelRef, local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_values["model"]["dtype"] = "bfloat16"
    tiny_values["resources"]["gpus_per_worker"] = 1
    config = parse_config(tiny_values)
    shapes = Shapes(load_config(Path(tiny_model.url)), "bfloat16")

    def cluster(name: str) -> Capacity:
        return Capacity(nodes=(Nodes(resources={"CPU": 8, "GPU": 8}, labels={ACCELERATOR_TYPE: name}),))

    def speeds(name: str) -> Speeds:
        return known_speeds(config, shapes, local_store, cluster(name))

    assert speeds("A100-80G").of == {ANY: pytest.approx(0.4 * 3.12e14)}
    assert "40% of the peak of A100-80G" in speeds("A100-80G").source
    assert speeds("Unheard-Of").of == {}
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    memory = [accelerator_memory(config.resources, cluster(name)) for name in ("H100", "A100", "Unheard-Of")]
    assert memory == [79 * GIB, None, None]  # Ray calls two sizes A100
    two = Capacity(nodes=(*cluster("L4").nodes, *cluster("H200").nodes))
    assert accelerator_memory(config.resources, two) == 139 * GIB


def test_nothing_begins_that_would_end_too_late(four: Pipeline) -> None:
    late = Search(four, BudgetConfig(hours=1.0), started=time.monotonic() - 7200)
    assert late.begin() is None
    assert late.proposals.is_finished
    assert set(late.proposals.left_out) == {spec.fingerprint for spec in four.specs}
    assert next(iter(late.proposals.left_out.values())) == "it would end after 2 hours; the search may take 1"


def test_a_failed_trial_costs_what_its_training_reported(four: Pipeline) -> None:
    search = Search(four, BudgetConfig(accelerator_hours=1.0))
    spec = search.begin()
    assert spec is not None
    search.report(spec, (3, 0.75))
    search.proposals.end(spec.fingerprint, TrialFailure(fingerprint=spec.fingerprint, cause="no memory"))
    assert search.spent == 0.75


@pytest.mark.usefixtures("process_group")
def test_work_that_was_lost_is_paid_for_too(four: Pipeline) -> None:
    search = Search(four, BudgetConfig(accelerator_hours=1.0))
    first = search.begin()
    assert first is not None
    search.report(first, (1, 0.25), (2, 0.5), (3, 0.75), (2, 0.5), (3, 0.75))
    search.end(first)
    (result,) = search.proposals.outcomes.results.values()
    assert search.spent == pytest.approx(0.5 + result.accelerator_seconds / 3600)
    second = search.begin()
    assert second is not None
    search.report(second, (1, 20.0), (2, 20.6))  # of which 20 hours were a shorter run's
    assert search.begin() is None  # what the other one has cost by now counts, though its estimate is lower
    search.end(second)
    assert search.begin() is not None


def test_an_untrained_trial_is_no_matter_of_accelerators() -> None:
    nothing, some = (Estimate(seconds=s, accelerator_hours=s) for s in (0.0, 1.0))
    budget = BudgetConfig(accelerator_hours=1.0)
    assert over_budget(budget, nothing, (), spent=2.0, elapsed=0.0, beside=0.0) is None
    assert over_budget(budget, some, (), spent=2.0, elapsed=0.0, beside=0.0) is not None


def test_optimal_brain_holds_the_products_of_what_layers_read(tiny_values: dict) -> None:
    """Of an 8 B shape: what attention, its output, the MLP and its output read, 14,336 inputs once and 4,096 else."""
    dense, found = shapes_of("8b").dense, {}
    for name in ("optimal_brain", "flap"):
        values = tiny_values | {"pruning": {"unit": "width", "criteria": [name]}}
        values["search"] = {"ratios": [0.2], "of": "parameters", "controls": ["dense"]}
        found[name] = scorer_memory(dense, parse_config(values), memory=139 * GIB)
    products = 8 * (3 * 4096**2 + 14_336**2)
    assert found["optimal_brain"].peak - found["flap"].peak == pytest.approx(products + 8 * 4 * 14_336**2, rel=0.01)


def test_layerwise_passes_hold_a_block_and_the_products_of_its_inputs(tiny_values: dict) -> None:
    """Of an 8 B shape: 4,096 inputs six times and 14,336 once, in fp64."""
    dense, found = shapes_of("8b").dense, {}
    for name, settings in {"wanda": {}, "sparsegpt": {}, "magnitude": {"refit": {}}}.items():
        values = tiny_values | {"pruning": {"unit": "weight", "criteria": [name], **settings}}
        values["search"] = {"ratios": [0.5], "controls": ["dense"]}
        found[name] = scorer_memory(dense, parse_config(values), memory=139 * GIB)
    products = 8 * (6 * 4096**2 + 14_336**2)
    assert found["sparsegpt"] == found["magnitude"]
    assert found["sparsegpt"].peak - found["wanda"].peak == pytest.approx(products + 8 * 4 * 14_336**2, rel=0.01)
    assert 4 < found["wanda"].peak / GIB < 8
    assert 12 < found["sparsegpt"].peak / GIB < 16
