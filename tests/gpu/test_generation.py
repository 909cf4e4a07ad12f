"""What shortening is for: how much sooner a shorter model answers."""

from collections.abc import Callable

import pytest
import torch

from shortened_llm.config import EfficiencyConfig
from shortened_llm.evaluation.efficiency import measure_efficiency
from shortened_llm.records import ModelRef
from tests.conftest import keeping
from tests.gpu.conftest import Figures

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("removed", [0.2, 0.4])
def test_a_shorter_model_generates_sooner(
    removed: float,
    model_of: Callable[[str], ModelRef],
    device: torch.device,
    figures: Figures,
    dtype: str,
    rehearsed: bool,
) -> None:
    dense = model_of("8b")
    left = dense.num_blocks - round(removed * dense.num_blocks)
    score = measure_efficiency(
        dense,
        dense.view(keeping(range(left))),
        EfficiencyConfig(
            batch_sizes=(1, 2) if rehearsed else (1, 8, 64), output_lengths=(4 if rehearsed else 16,), runs=5, warmups=2
        ),
        dtype=dtype,
        device=str(device),
    )
    figures.add(
        f"generation 8b, {left} of {dense.num_blocks} blocks",
        protocol=score.protocol,
        **{
            f"batch_{point.dense.batch_size}_{name}": value
            for point in score.points
            for name, value in (
                ("dense_latency", point.dense.latency),
                ("latency", point.model.latency),
                ("speed_up", point.speed_up),
                ("of_ideal", point.speed_up / point.ideal_speed_up if point.ideal_speed_up else None),
                ("dense_peak_gib", point.dense.peak_memory_bytes / 2**30),
                ("peak_gib", point.model.peak_memory_bytes / 2**30),
            )
        },
    )
    assert rehearsed or all(point.speed_up > 1.05 for point in score.points)
