"""Scores of several models in the terminal."""

from dataclasses import replace

from shortened_llm.evaluation.table import comparison_table
from shortened_llm.records import (
    EfficiencyPoint,
    EfficiencyScore,
    EvalScores,
    EvaluatedModel,
    Footprint,
    GenerationPoint,
    MissingScore,
    ModelRef,
    PerplexityScore,
)


def model(name: str, **perplexities: float) -> EvaluatedModel:
    """Measured on texts that all are called `test`, one for each unit."""
    scores = EvalScores(
        perplexity=tuple(
            PerplexityScore(
                unit=unit, source="test", protocol="@128", perplexity=value, mean_nll=1.0, num_predictions=9,
                document_nll=(), document_predictions=(),
            )
            for unit, value in perplexities.items()
        )
    )  # fmt: skip
    ref = ModelRef(url=name, fingerprint=name, files=(), num_blocks=2)
    return EvaluatedModel(model=name, ref=ref, selection=EvalScores(), report=scores)


def test_two_texts_of_one_name_have_a_line_each() -> None:
    first, second = comparison_table([model("dense", a=25.0, b=12.0), model("pruned", b=13.0)]).splitlines()[1:]
    assert first.split() == ["report", "perplexity", "test", "25.0000", "-", "@128"]
    assert second.split() == ["report", "perplexity", "test", "(2)", "12.0000", "13.0000", "@128"]


def test_one_text_of_two_models_has_one_line() -> None:
    (line,) = comparison_table([model("dense", a=25.0), model("pruned", a=26.0)]).splitlines()[1:]
    assert line.split()[3:] == ["25.0000", "26.0000", "@128"]


def test_models_of_one_directory_name_are_told_apart() -> None:
    first, *_ = comparison_table([model("base"), model("runs/1/model"), model("runs/2/model/")]).splitlines()
    assert first.split() == ["base", "1/model", "2/model"]


def test_what_is_missing_is_said() -> None:
    one = model("pruned", a=25.0)
    missing = EvalScores(missing=(MissingScore(unit="a", name="task piqa", cause="lost"),))
    assert "pruned: task piqa is missing: lost" in comparison_table([replace(one, selection=missing)])


def test_speeds_stand_beside_those_of_the_same_turns() -> None:
    def point(latency: float) -> GenerationPoint:
        return GenerationPoint(
            batch_size=1, prompt_tokens=12, output_tokens=32, latency=latency, latency_deviation=0.01,
            time_to_first_token=0.1, throughput=32 / latency, peak_memory_bytes=2**20,
        )  # fmt: skip

    speeds = EfficiencyScore(
        unit="speed",
        protocol="CPU",
        points=(
            EfficiencyPoint(
                dense=point(0.8), model=point(0.5), speed_up=1.6, ideal_speed_up=1.5, block_share=0.75, head_share=0.2
            ),
        ),
        dense=Footprint(weight_bytes=3 * 2**20, kv_bytes_per_token=30, flops_per_token=3e6),
        model=Footprint(weight_bytes=2 * 2**20, kv_bytes_per_token=20, flops_per_token=2e6),
    )
    one = model("pruned")
    lines = comparison_table([replace(one, report=EvalScores(efficiency=speeds))]).splitlines()
    assert lines[-5].startswith("dense weights 3 MiB, cache 30 bytes a token, 3 MFLOPs a token")
    assert lines[-4].startswith("model weights 2 MiB")
    assert lines[-2].split() == ["dense", "1", "32", "0.8000", "±0.0100", "0.1000", "40.0", "1", "75.0%", "20.0%"]
    assert lines[-1].split() == ["model", "1", "32", "0.5000", "±0.0100", "0.1000", "64.0", "1", "1.600", "1.500"]
