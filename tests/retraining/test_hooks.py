"""What plugs into the loop: masks that hold, and runs that end early."""

import pytest
import torch
from torch import nn

from shortened_llm import metrics
from shortened_llm.models.load import load_model
from shortened_llm.models.shards import plain_name
from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.loop import TrainLoop
from shortened_llm.retraining.train import train
from tests.conftest import MakeJob
from tests.retraining.conftest import Recorder

CPU = torch.device("cpu")


def pruned(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Which weights a mask leaves out: every second column of the MLPs' last layer."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    if name.endswith("down_proj.weight"):
        mask[:, ::2] = True
    return mask


class Mask:
    """A hook that zeroes the weights that are left out, in each worker's rows."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, loop: TrainLoop, done: int) -> None:
        self.steps.append(done)
        with torch.no_grad():
            for name, parameter in loop.model.named_parameters():
                local = parameter.to_local()
                local.masked_fill_(pruned(name, local), 0.0)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {plain_name(name): parameter.full_tensor() for name, parameter in model.named_parameters()}


@pytest.mark.usefixtures("process_group")
def test_a_mask_holds_from_the_first_step_to_the_last(job: RetrainingJob) -> None:
    plain, masked, resumed, mask = Recorder(), Recorder(), Recorder(), Mask()
    train(job, device=CPU, resume_from=None, host=plain)
    model, _ = train(job, device=CPU, resume_from=None, host=masked, after_step=[mask])
    assert mask.steps == list(range(1, job.recipe.num_steps + 1))
    start = dict(load_model(job.model, "float32").named_parameters())
    for name, weight in weights(model).items():
        left_out = pruned(name, weight)
        assert not weight[left_out].any()
        assert (weight != start[name])[~left_out].any(), f"{name} was trained"
    losses = [point.loss for point in masked.points]
    assert losses[0] == plain.points[0].loss, "the first step sees the weights as they were given"
    assert all(ours != theirs.loss for ours, theirs in zip(losses[1:], plain.points[1:], strict=True))
    again, _ = train(
        job, device=CPU, resume_from=masked.checkpoints[0].directory, host=resumed, after_step=[Mask()]
    )  # fmt: skip
    assert [point.loss for point in resumed.points] == losses[-len(resumed.points) :]
    assert weights(again).keys() == weights(model).keys()
    assert all(torch.equal(weight, weights(model)[name]) for name, weight in weights(again).items())


@pytest.mark.usefixtures("process_group")
def test_a_run_that_a_hook_stops_ends_like_any_other(make_job: MakeJob) -> None:
    seen: list[int] = []

    def stop_at_four(loop: TrainLoop, point: TrainingPoint) -> None:
        seen.append(point.step)
        if point.step == 4:
            loop.stop()

    job, recorder, later = make_job(checkpoint_tokens=1_000_000), Recorder(), Recorder()
    model, progress = train(job, device=CPU, resume_from=None, host=recorder, at_report=[stop_at_four])
    assert seen == [point.step for point in recorder.points] == [1, 2, 3, 4]
    assert (progress.step, progress.stopped, len(recorder.checkpoints)) == (4, True, 1)
    assert progress.history[-1].validation_loss == progress.best_validation_loss is not None
    assert recorder.values[-1][metrics.SECONDS_LEFT] == 0
    # An attempt that is lost while it exports leaves this checkpoint; the next one trains no further.
    again, same = train(job, device=CPU, resume_from=recorder.checkpoints[0].directory, host=later)
    assert (later.points, same) == ([], progress)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.full_tensor(), theirs.full_tensor())
