"""Put the directory of a Train run in order before the run goes on.

Ray Train keeps the list of a run's checkpoints in one file, written in place. A run whose list is cut short, or names
a checkpoint that is gone, is refused for good; and a checkpoint that was complete when the driver was killed, but not
yet listed, would be forgotten. So before each start the list is made to name what is there: the newest complete
checkpoints. Everything else is deleted: it is damaged, half uploaded, or was to be deleted.
"""

from pydantic import ValidationError
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from shortened_llm.retraining.checkpoint import check_complete
from shortened_llm.retraining.manifest import CHECKPOINT_NAME, DamagedCheckpointError
from shortened_llm.storage.urls import delete, join, list_names, read_bytes, write_bytes


def repair_run_directory(url: str, *, num_to_keep: int) -> list[str]:
    """Make Ray's list of checkpoints name the newest complete ones below `url`. No run may be using the directory.

    Args:
        url: directory of one Train run; it need not exist.
        num_to_keep: checkpoints that the run keeps.

    Returns:
        What was wrong, one line each, for the user to read; empty where nothing was.
    """
    present = [name for name in list_names(url) if CHECKPOINT_NAME.fullmatch(name)]
    faults: list[str] = []
    steps: dict[str, int] = {}
    for name in present:
        try:
            steps[name] = check_complete(join(url, name))[0].progress.step
        except DamagedCheckpointError as error:
            faults.append(f"{name} is not complete: {error}")
    usable = sorted(steps, key=lambda name: (steps[name], name))[-num_to_keep:]

    list_url = join(url, CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    listed: list[str] | None = []
    try:
        listed = _listed_names(read_bytes(list_url))
        faults += [f"{name} is gone" for name in listed if name not in present]
    except FileNotFoundError:
        pass
    except ValidationError:
        listed = None
        faults.append("Ray's list of checkpoints is damaged")
    if listed != usable:
        if usable:
            write_bytes(list_url, _list_of(usable).encode())
        else:
            delete(list_url)
    for name in present:
        if name not in usable:
            delete(join(url, name))
    return faults


def _listed_names(content: bytes) -> list[str]:
    """Names in Ray's list, oldest first; raises `ValidationError` where Ray could not read it."""
    state = _CheckpointManagerState.model_validate_json(content)
    return [result.checkpoint_dir_name for result in state.checkpoint_results]


def _list_of(names: list[str]) -> str:
    """What Ray would have written of these checkpoints, oldest first."""
    results = [_TrainingResultState(checkpoint_dir_name=name, metrics={}) for name in names]
    state = _CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(names))),
        latest_checkpoint_result=results[-1],
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(names),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    return str(state.model_dump_json())
