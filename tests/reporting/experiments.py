"""A search as it might have gone, built from plain records: two criteria, two ratios, one plan that both led to."""

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from shortened_llm.records import (
    AgreementScore,
    Cut,
    EfficiencyPoint,
    EfficiencyScore,
    EvalScores,
    Experiment,
    Footprint,
    GenerationPoint,
    MetricScore,
    MissingScore,
    ModelRef,
    ModelSize,
    PerplexityScore,
    PlanLabel,
    Provenance,
    PrunePlan,
    Recipe,
    ReportedTrial,
    RetrainedModel,
    Target,
    TaskScore,
    TrainingPoint,
    TrialResult,
    TrialSpec,
    UnitScores,
)
from shortened_llm.reporting.rows import best_of_each_target
from tests.conftest import keeping

NUM_BLOCKS = 30
BLOCK_PARAMETERS = 3_540_096
OTHER_PARAMETERS = 28_312_128
SIZE = ModelSize(
    block_parameters=(BLOCK_PARAMETERS,) * NUM_BLOCKS, other_parameters=OTHER_PARAMETERS, bytes_per_parameter=2
)
PROTECTED = (0, 1, 2, 3, 28, 29)
BOS_FIRST = "test split, segments of 128 tokens, one BOS at the start, remainder dropped"
HELD_OUT = "documents held out of the training text, segments of 128 tokens, one BOS at the start"


def text(source: str, perplexity: float, protocol: str = BOS_FIRST, unit: str = "") -> PerplexityScore:
    return PerplexityScore(
        unit=unit or f"{source} {protocol}",
        source=source,
        protocol=protocol,
        perplexity=perplexity,
        mean_nll=math.log(perplexity),
        num_predictions=25_400,
        document_nll=(),
        document_predictions=(),
    )


def texts(protocol: str = BOS_FIRST, **perplexities: float) -> EvalScores:
    return EvalScores(perplexity=tuple(text(source, value, protocol) for source, value in perplexities.items()))


def plan(removed: tuple[int, ...], *labels: tuple) -> PrunePlan:
    """Labels are (criterion, ratio), and a third part where calibrations are told apart."""
    kept = tuple(block for block in range(NUM_BLOCKS) if block not in removed)
    return PrunePlan(
        transforms=keeping(kept) if removed else (),
        labels=tuple(
            PlanLabel(
                criterion=criterion,
                target=Target(of="blocks", ratio=ratio),
                calibration=next(iter(calibration), None),
            )
            for criterion, ratio, *calibration in labels
        ),
        size=SIZE.without(removed),
        dense=SIZE.without(()),
    )


def history(start: float, end: float, tokens: int = 40_960) -> tuple[TrainingPoint, ...]:
    return tuple(
        TrainingPoint(
            step=step,
            tokens=tokens * step // 40,
            loss=end + (start - end) * math.exp(-step / 6) + 0.05 * math.sin(2.1 * step),
            learning_rate=1e-4,
            tokens_per_second=410.0,
            seconds=tokens * step / 40 / 410,
        )
        for step in range(1, 41)
    )


STEPS, BATCH, LENGTH = 40, 4, 256


def recipe(
    method: str, learning_rate: float = 1e-4, seed: int = 0, *, steps: int = STEPS, instructions: bool = False
) -> Recipe:
    return Recipe(
        method=method,  # type: ignore[arg-type]
        train_on="instructions" if instructions else "corpus",
        num_steps=steps,
        global_batch_size=BATCH,
        sequence_length=LENGTH,
        seed=seed,
        learning_rate=learning_rate,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        max_gradient_norm=1.0,
        schedule="wsd",
        warmup_steps=4,
        decay_steps=8,
        final_learning_rate_ratio=0.1,
    )


def run(fingerprint: str, pruned: PrunePlan, recipe: Recipe, losses: tuple[float, float]) -> RetrainedModel:
    """A training run that went as its recipe says, at 410 tokens a second."""
    seconds = recipe.tokens / 410
    return RetrainedModel(
        model=ModelRef(
            url=f"s3://bucket/team/models/{fingerprint}/a1",
            fingerprint=fingerprint,
            files=(),
            num_blocks=pruned.size.blocks,
            origin=pruned.transforms,
        ),
        tokens=recipe.tokens,
        seconds=seconds,
        accelerator_seconds=2 * seconds,
        history=history(*losses, tokens=recipe.tokens) if recipe.num_steps else (),
    )


def trial(
    fingerprint: str,
    pruned: PrunePlan,
    learning_rate: float = 1e-4,
    *,
    before: EvalScores | None = None,
    after: EvalScores | None = None,
    report_before: EvalScores | None = None,
    report_after: EvalScores | None = None,
    failure: str | None = None,
    method: str = "cpt",
    recipes: tuple[Recipe, ...] | None = None,
    control: Literal["dense", "random"] | None = None,
    equal_seconds: bool = False,
) -> ReportedTrial:
    """A trial that finished if it has scores `after`."""
    recipes = recipes or (recipe(method, learning_rate),)
    result = None
    if after is not None:
        before = before or EvalScores()
        losses = (before.mean_nll if before.perplexity else 4.0, after.mean_nll if after.perplexity else 3.0)
        runs = tuple(run(fingerprint, pruned, one, losses) for one in recipes)
        result = TrialResult(
            fingerprint=fingerprint,
            model=runs[-1].model,
            runs=runs,
            before=before,
            after=after,
            seconds=131.0,
        )
    return ReportedTrial(
        spec=TrialSpec(
            fingerprint=fingerprint,
            plan=pruned,
            method=method,
            recipes=recipes,
            control=control,
            equal_seconds=equal_seconds,
        ),
        result=result,
        failure=failure,
        before=report_before or EvalScores(),
        after=report_after or EvalScores(),
    )


def unit_scores(criterion: str) -> UnitScores:
    if criterion == "ppl":
        scores = tuple(
            25_310.4 if block == 0 else 612.7 if block == 1 else 27.1 + 9 * abs(math.sin(1.7 * block)) + 0.3 * block
            for block in range(NUM_BLOCKS)
        )
    else:
        scores = tuple(
            0.9 if block == 0 else 3.1 + 0.8 * math.cos(0.9 * block) + 0.05 * block for block in range(NUM_BLOCKS)
        )
    return UnitScores(
        criterion=criterion,
        scores=scores,
        order=tuple(sorted(range(NUM_BLOCKS), key=lambda block: scores[block])),
        standard_errors=tuple(0.03 * score for score in scores) if criterion == "ppl" else None,
        protected=PROTECTED,
        dense_perplexity=26.3 if criterion == "ppl" else None,
        protocol=f"wiki, 10 sequences of 128 tokens, seed 1234, float32, {criterion}",
        tokens=1280,
        fingerprint=f"scores-{criterion}",
    )


def with_cuts(scores: UnitScores, probabilities: dict[int, dict[int, float]]) -> UnitScores:
    """The same scores after resampling.

    Args:
        probabilities: count -> block -> share of resamples by which it goes; of other blocks, what the order says.
    """
    cuts = []
    for count, given in probabilities.items():
        removed = scores.removed(count)
        shares = tuple(given.get(block, float(block in removed)) for block in range(NUM_BLOCKS))
        cuts.append(Cut(count=count, removed=removed, probabilities=shares))
    return replace(scores, cuts=tuple(cuts))


def partly_scored(criterion: str) -> UnitScores:
    """By a criterion that never scores protected blocks."""
    scores = unit_scores(criterion)
    return replace(
        scores,
        scores=tuple(None if block in PROTECTED else score for block, score in enumerate(scores.scores)),
        standard_errors=tuple(None if block in PROTECTED else 0.4 for block in range(NUM_BLOCKS)),
    )


def nine_criteria() -> tuple[UnitScores, ...]:
    """Every kind of score: noisy, partly None, with sets, places of a ranking, equal, zero, negative."""
    ppl = with_cuts(unit_scores("ppl"), {6: {9: 0.453, 24: 0.611}, 12: {}})
    taylor = with_cuts(unit_scores("taylor"), {6: {}, 12: {14: 0.0004}})
    kl = replace(
        with_cuts(unit_scores("kl"), {6: {9: 0.5}, 12: {22: 0.07, 26: 0.93, 8: 0.4}}),
        scores=(9.5, 3.25, *(1e-4 * 1.4**block for block in range(28))),
        standard_errors=(0.5, None, *(2e-4 for _ in range(28))),
        tokens=96_000,
    )
    backwards = tuple(reversed(range(NUM_BLOCKS)))
    last_n = replace(
        unit_scores("last_n"), scores=tuple(float(block + 1) for block in backwards), order=backwards, tokens=0
    )
    shuffled = tuple(sorted(range(NUM_BLOCKS), key=lambda block: (7 * block) % 31))
    places = tuple(float(shuffled.index(block)) for block in range(NUM_BLOCKS))
    random = replace(unit_scores("random"), scores=places, order=shuffled, tokens=0)
    equal = replace(unit_scores("magnitude"), scores=(0.0,) * NUM_BLOCKS, tokens=0)
    influence = replace(
        unit_scores("block_influence"), scores=tuple(0.01 * (block - 12) for block in range(NUM_BLOCKS))
    )
    chances = tuple(0.5 if block in (10, 16) else float(10 < block < 16) for block in range(NUM_BLOCKS))
    spans = replace(
        unit_scores("angular_span"),
        sets=(tuple(range(11, 17)), tuple(range(12, 24))),
        cuts=(Cut(count=6, removed=tuple(range(11, 17)), probabilities=chances),),
    )
    return (ppl, taylor, equal, influence, spans, kl, partly_scored("greedy_ppl"), last_n, random)


def unscored() -> UnitScores:
    return replace(unit_scores("greedy_ppl"), scores=(None,) * NUM_BLOCKS, standard_errors=(None,) * NUM_BLOCKS)


SMALL_CUT = (9, 11, 13, 17, 20, 24)
TAYLOR_CUT = (8, 9, 10, 11, 12, 13, 17, 18, 20, 22, 24, 25)
PPL_CUT = (6, 7, 9, 11, 13, 15, 17, 20, 22, 24, 26, 27)


def piqa(value: float) -> EvalScores:
    score = TaskScore(
        unit="piqa", task="piqa", metric="acc", value=value, standard_error=0.0112, num_items=1838,
        protocol="lm-eval 0.4.13, 0 shots", higher_is_better=True,
    )  # fmt: skip
    return EvalScores(tasks=(score,))


def with_task(scores: EvalScores, value: float) -> EvalScores:
    return replace(scores, tasks=piqa(value).tasks)


def experiment() -> Experiment:
    merged = plan(SMALL_CUT, ("ppl", 0.2), ("taylor", 0.2))
    by_taylor = plan(TAYLOR_CUT, ("taylor", 0.4))
    by_ppl = plan(PPL_CUT, ("ppl", 0.4))
    cut20 = {
        "before": texts(HELD_OUT, wiki=83.21, c4=92.4),
        "report_before": texts(wikitext2=91.07, austen=73.5),
    }
    cut40 = {
        "before": texts(HELD_OUT, wiki=263.9, c4=208.3),
        "report_before": texts(wikitext2=2301.4, austen=184.2),
    }
    trials = (
        trial("f1", merged, 1e-4, after=texts(HELD_OUT, wiki=34.02, c4=63.9),
              report_after=texts(wikitext2=36.12, austen=60.11), **cut20),
        trial("f2", merged, 3e-4, after=texts(HELD_OUT, wiki=32.81, c4=61.4),
              report_after=with_task(texts(wikitext2=34.55, austen=59.02), 0.612), **cut20),
        trial("f3", by_ppl, 1e-4, after=texts(HELD_OUT, wiki=51.3, c4=104.2),
              report_after=texts(wikitext2=55.02, austen=121.4), **cut40),
        trial("f4", by_ppl, 3e-4, after=texts(HELD_OUT, wiki=46.04, c4=101.5),
              report_after=with_task(texts(wikitext2=49.2, austen=115.4), 0.571), **cut40),
        trial("f5", by_taylor, 1e-4, failure=FAILURE, report_before=texts(wikitext2=310.2, austen=201.7)),
        trial("f6", by_taylor, 3e-4),
    )  # fmt: skip
    return Experiment(
        name="smollm2-20-40",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        dense_size=SIZE.without(()),
        dense_url="s3://bucket/team/models/dense/a0",
        dense_selection=texts(HELD_OUT, wiki=24.09, c4=33.5),
        dense_report=with_task(texts(wikitext2=25.31, austen=36.02), 0.689),
        unit_scores=(unit_scores("ppl"), unit_scores("taylor")),
        trials=trials,
        notes=("c4 serves selection and training; it is split by document.",),
        unseen_units=(),
        dense_fingerprint="6f1d2a90c3b4e587",
        versions={"torch": "2.11.0", "transformers": "5.23.0", "tokenizers": "0.22.1"},
        provenance=Provenance(
            base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
            on_hub=True,
            base_license=None,
            sources=(),
            dtype="bfloat16",
        ),
    )


FAILURE = (
    "OutOfMemoryError: the worker on node 10.0.3.7 asked for 81.2 GiB\n"
    "  raised in step 120 <script>alert('x')</script> of retraining"
)


def without_results() -> Experiment:
    """The same search, in which nothing finished and nothing was measured for the report."""
    full = experiment()
    trials = tuple(
        replace(t, result=None, failure=FAILURE, before=EvalScores(), after=EvalScores()) for t in full.trials
    )
    return replace(full, trials=trials, dense_report=EvalScores())


def by_document(
    source: str, mean_nll: float, *, seed: int, documents: int = 160, noise: float = 0.05, protocol: str = BOS_FIRST
) -> PerplexityScore:
    """A model on a text whose documents differ far more from one another than models do on one document.

    Args:
        mean_nll: of the model, in nats per prediction.
        seed: of what this model makes of each document.
        noise: standard deviation of that, in nats per prediction.
    """
    of_text, of_model = np.random.default_rng(documents), np.random.default_rng(seed)
    predictions = of_text.integers(20, 400, documents)
    hardness = of_text.normal(0, 0.6, documents)
    own = of_model.normal(0, noise, documents)
    # Exact means, so that a test knows the difference of two models.
    hardness -= (hardness * predictions).sum() / predictions.sum()
    own -= (own * predictions).sum() / predictions.sum()
    sums = (mean_nll + hardness + own) * predictions
    return PerplexityScore(
        unit=f"{source} {protocol}",
        source=source,
        protocol=protocol,
        perplexity=math.exp(mean_nll),
        mean_nll=mean_nll,
        num_predictions=int(predictions.sum()),
        document_nll=tuple(round(value, 4) for value in sums.tolist()),
        document_predictions=tuple(predictions.tolist()),
    )


RANDOM_CUT = (5, 8, 12, 16, 21, 23)
RANDOM_CUT_40 = (4, 5, 8, 10, 12, 14, 16, 18, 19, 21, 23, 25)
WHOLE = plan((), ("dense", 0.0))


def scores_by_document(role: str, *losses: float, seed: int) -> EvalScores:
    """On the two texts of a role, of which one was never trained on."""
    names = ("wiki", "c4") if role == "selection" else ("wiki", "austen")
    documents = (160, 90)
    protocol = HELD_OUT if role == "selection" else BOS_FIRST
    return EvalScores(
        perplexity=tuple(
            by_document(name, loss, seed=100 * seed + place, documents=number, protocol=protocol)
            for place, (name, loss, number) in enumerate(zip(names, losses, documents, strict=True))
        )
    )


def compared() -> Experiment:
    """Methods at two ratios, two seeds each, with controls, instructions, equal seconds, and trials that failed.

    The figures follow a real one: on wiki continued pretraining wins, on text never trained on distillation does.
    """
    trials: list[ReportedTrial] = []
    selection, report = partial(scores_by_document, "selection"), partial(scores_by_document, "report")

    def add(
        pruned: PrunePlan, method: str, recipes: tuple[Recipe, ...], losses: tuple[float, float], **options: object
    ) -> None:
        number, seed = len(trials), recipes[-1].seed
        wiki, austen = (loss + 0.01 * math.sin(5 * number + seed) for loss in losses)
        before = 4.45 if len(pruned.removed_blocks) == 6 else 5.6 if pruned.removed_blocks else 3.2
        done = trial(
            f"t{number:02}",
            pruned,
            method=method,
            recipes=recipes,
            before=selection(before, before + 0.1, seed=900 + len(pruned.removed_blocks)),
            after=selection(wiki + 0.02, austen + 0.05, seed=number),
            report_before=report(before, before - 0.1, seed=800 + len(pruned.removed_blocks)),
            report_after=report(wiki, austen, seed=300 + number),
            **options,  # type: ignore[arg-type]
        )
        trials.append(with_validation(done))

    for removed, ratio, shift, steps in ((SMALL_CUT, 0.2, 0.0, 40), (PPL_CUT, 0.4, 0.7, 80)):
        pruned = plan(removed, ("ppl", ratio))
        for seed in (0, 1):
            make = partial(recipe, seed=seed, steps=steps)
            add(pruned, "cpt", (make("cpt", 1e-4),), (3.55 + shift, 4.12 + shift))
            add(pruned, "cpt", (make("cpt", 3e-4),), (3.49 + shift, 4.08 + shift))
            add(pruned, "lora", (make("lora", 1e-3),), (3.70 + shift, 4.20 + shift))
            add(pruned, "lora", (make("lora", 3e-3),), (3.54 + shift, 4.06 + shift))
            add(pruned, "distill", (make("distill", 3e-4),), (3.587 + shift, 4.02 + shift))
            halves = (recipe("cpt", 3e-4, seed, steps=steps // 2), recipe("lora", 3e-3, seed, steps=steps // 2))
            add(pruned, "cpt_lora", halves, (3.51 + shift, 4.07 + shift))
            instructions = recipe("lora", 1e-4, seed, steps=12, instructions=True)
            add(pruned, "lora", (instructions,), (4.02 + shift, 4.22 + shift))
            then = (make("cpt", 3e-4), instructions)
            add(pruned, "cpt_lora", then, (3.56 + shift, 4.05 + shift))
            add(
                pruned,
                "lora",
                (recipe("lora", 3e-3, seed, steps=steps * 3 // 2),),
                (3.47 + shift, 4.0 + shift),
                equal_seconds=True,
            )
            add(
                pruned,
                "distill",
                (recipe("distill", 3e-4, seed, steps=steps // 2),),
                (3.68 + shift, 4.11 + shift),
                equal_seconds=True,
            )
            add(
                plan(RANDOM_CUT if ratio == 0.2 else RANDOM_CUT_40, ("random", ratio)),
                "cpt",
                (make("cpt", 3e-4),),
                (3.98 + shift, 4.41 + shift),
                control="random",
            )
            add(WHOLE, "cpt", (make("cpt", 3e-4),), (2.95 - shift / 50, 3.57), control="dense")
    trials = [in_equal_time(one) if one.spec.equal_seconds else one for one in trials]
    trials[4] = with_incidents(trials[4])
    trials[14] = replace(trials[14], result=None, failure=FAILURE, before=EvalScores(), after=EvalScores())
    return replace(
        experiment(),
        trials=tuple(trials),
        dense_selection=selection(3.22, 3.6, seed=1000),
        dense_report=report(3.20, 3.58, seed=1001),
        unseen_units=(f"austen {BOS_FIRST}",),
    )


def with_validation(done: ReportedTrial) -> ReportedTrial:
    """The same with a validation loss at every tenth step."""
    assert done.result is not None
    runs = tuple(
        replace(
            run,
            history=tuple(
                replace(point, validation_loss=point.loss + 0.11) if point.step % 10 == 0 else point
                for point in run.history
            ),
        )
        for run in done.result.runs
    )
    return replace(done, result=replace(done.result, runs=runs))


def in_equal_time(done: ReportedTrial) -> ReportedTrial:
    """The same, having taken the time of continued pretraining at its ratio, but for 3 %."""
    assert done.result is not None
    tokens = (40 if len(done.spec.plan.removed_blocks) == 6 else 80) * BATCH * LENGTH
    runs = tuple(
        replace(run, seconds=1.03 * tokens / 410, accelerator_seconds=2.06 * tokens / 410) for run in done.result.runs
    )
    return replace(done, result=replace(done.result, runs=runs))


def with_incidents(done: ReportedTrial) -> ReportedTrial:
    """The same with skipped steps, a loss spike and adapters."""
    assert done.result is not None
    (last,) = done.result.runs
    adapter = replace(last.model, url="s3://bucket/team/adapters/t04/a1")
    last = replace(last, skipped_steps=(7, 8), loss_spikes=(21,), adapter=adapter)
    return replace(done, result=replace(done.result, runs=(last,)))


LM_EVAL = "lm-eval 0.4.13, task version 1, 0 shots, all {} items"


def task_score(task: str, metric: str, share: float, *, seed: int, items: int = 1000, protocol: str = "") -> TaskScore:
    """A model on a task whose items are hard or easy for all models alike: about `share` of them right."""
    hardness = np.random.default_rng(len(task)).uniform(size=items)
    luck = np.random.default_rng(seed).normal(0, 0.06, items)
    right = (hardness + luck < share).astype(float)
    answers = np.where(right == 1, 0, np.random.default_rng(seed + 1).integers(1, 4, items))
    bits = 1.2 - 0.8 * share + 0.5 * hardness + luck / 4
    value = float(right.mean())
    protocol = protocol or LM_EVAL.format(items)
    return TaskScore(
        unit=f"{task} {protocol}",
        task=task,
        metric=metric,
        value=value,
        standard_error=math.sqrt(value * (1 - value) / items),
        num_items=items,
        protocol=protocol,
        higher_is_better=True,
        item_values=tuple(right.tolist()),
        item_answers=tuple(answers.tolist()),
        item_bits_per_byte=tuple(bits.round(4).tolist()),
    )


TASKS = (("boolq", "acc", 0.72), ("piqa", "acc", 0.69), ("hellaswag", "acc_norm", 0.55), ("winogrande", "acc", 0.6),
         ("arc_easy", "acc", 0.61), ("arc_challenge", "acc_norm", 0.38), ("openbookqa", "acc_norm", 0.36))  # fmt: skip


def task_scores(loss: float, *, seed: int) -> tuple[TaskScore, ...]:
    """On the paper's seven tasks, each `loss` below the dense model."""
    return tuple(
        task_score(task, metric, share - loss * (0.5 + place / 6), seed=seed + 10 * place)
        for place, (task, metric, share) in enumerate(TASKS)
    )


def agreement(kl: float, top1: float) -> tuple[AgreementScore, ...]:
    return tuple(
        AgreementScore(
            unit=f"agreement {source}", source=source, protocol=BOS_FIRST, kl=kl * factor, top1=top1,
            num_predictions=25_400,
        )
        for source, factor in (("wiki", 1.0), ("austen", 1.2))
    )  # fmt: skip


def own_metric(value: float) -> tuple[MetricScore, ...]:
    name = "measures:rhyme_rate"
    return (MetricScore(unit=name, name=name, value=value, protocol="measures 3f2a, 200 prompts"),)


SHAPES = tuple((batch, tokens) for batch in (1, 8, 64) for tokens in (128, 512))


def efficiency(kept: int, *, device: str = "NVIDIA H200, bfloat16") -> EfficiencyScore:
    """Of a model with `kept` of the 30 blocks: time and memory in proportion to the blocks, plus a constant."""

    def point(batch: int, tokens: int, blocks: int) -> GenerationPoint:
        latency = tokens * (0.0004 + 0.00031 * blocks) * (1 + batch / 90) * (1 + 0.004 * math.sin(batch + blocks))
        return GenerationPoint(
            batch_size=batch,
            prompt_tokens=12,
            output_tokens=tokens,
            latency=latency,
            latency_deviation=0.012 * latency,
            time_to_first_token=0.002 + latency / tokens,
            throughput=batch * tokens / latency,
            peak_memory_bytes=round((0.06 + 0.007 * blocks + 1.1e-6 * blocks * batch * tokens) * 2**30),
            gpu_utilisation=min(0.98, 0.6 + batch / 200),
        )

    def footprint(blocks: int) -> Footprint:
        return Footprint(
            weight_bytes=2 * (OTHER_PARAMETERS + blocks * BLOCK_PARAMETERS),
            kv_bytes_per_token=768 * blocks,
            flops_per_token=2.0 * (OTHER_PARAMETERS + blocks * BLOCK_PARAMETERS),
        )

    pairs = [(point(batch, tokens, NUM_BLOCKS), point(batch, tokens, kept)) for batch, tokens in SHAPES]
    return EfficiencyScore(
        unit="efficiency",
        protocol=f"{device}, prompt of 12 tokens, 20 runs after 10 warm-ups, in turns with the dense model",
        points=tuple(
            EfficiencyPoint(
                dense=dense,
                model=own,
                speed_up=dense.latency / own.latency,
                ideal_speed_up=1 / (1 - 0.96 * (1 - kept / NUM_BLOCKS)),
                block_share=0.96,
                head_share=0.03,
            )
            for dense, own in pairs
        ),
        dense=footprint(NUM_BLOCKS),
        model=footprint(kept),
    )


MISSING_TASK = MissingScore(
    unit=f"hellaswag {LM_EVAL.format(1000)}",
    name="task hellaswag",
    cause="OutOfMemoryError: asked for 3.1 GiB at batch size 1",
)


def everything() -> Experiment:
    """Methods, seeds and controls with every kind of score, while some trials run, wait or have failed."""
    full = replace(compared(), unit_scores=nine_criteria()[:5])
    rich = []
    best = {id(trial) for trial in best_of_each_target(full.trials).values()}
    for number, trial in enumerate(full.trials):
        control = trial.spec.control is not None and trial.spec.seed == 0
        removed = len(trial.spec.plan.removed_blocks)
        if id(trial) in best or control:
            loss = 0.005 * removed + (0.02 if trial.spec.control == "random" else 0.0)
            tasks = task_scores(loss, seed=1000 * number)
            after = replace(
                trial.after,
                tasks=tasks,
                agreement=agreement(0.06 * removed, 0.92 - 0.02 * removed),
                metrics=own_metric(0.4 - loss),
                efficiency=efficiency(trial.spec.plan.size.blocks) if id(trial) in best else None,
            )
            if control and trial.spec.control == "random" and removed == 6:
                after = replace(after, tasks=tasks[:2] + tasks[3:], missing=(MISSING_TASK,))
            trial = replace(trial, after=after)
        rich.append(trial)
    unfinished = {"result": None, "before": EvalScores(), "after": EvalScores()}
    rich[34] = replace(rich[34], running=True, **unfinished)  # type: ignore[arg-type]
    rich[38] = replace(rich[38], **unfinished)  # type: ignore[arg-type]
    dense = replace(full.dense_report, tasks=task_scores(0.0, seed=77), metrics=own_metric(0.41))
    return replace(full, trials=tuple(rich), dense_report=dense)
