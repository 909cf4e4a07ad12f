"""From a trial of an experiment to a plain Hugging Face directory; needs no Ray."""

from collections import Counter
from dataclasses import replace

from shortened_llm.errors import BadInputError
from shortened_llm.fingerprint import file_sha256
from shortened_llm.logs import LOGGER
from shortened_llm.models.directory import model_directory
from shortened_llm.models.export import export_view
from shortened_llm.records import Bin, Experiment, ModelRef, PlanLabel
from shortened_llm.reporting.card import trial_card
from shortened_llm.reporting.recommendation import recommend
from shortened_llm.reporting.rows import TrialRow, best_of_each_target, trial_rows
from shortened_llm.storage.payload import download_directory, download_files, has_files
from shortened_llm.storage.placement import PARTIAL, placed
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import find_files, is_local, list_names, normalise

LICENSE_FILES = ("LICENSE*",)


def choose_trial(experiment: Experiment, *, target: float | None = None, number: int | None = None) -> TrialRow:
    """A trial that is done: the one of a number, or the best of a target. Without either it is the one that constraints
    recommend, or the best of the only target.

    Raises:
        BadInputError: there is no such target or number, or the trial has no model.
    """
    rows = {row.number: row for row in trial_rows(experiment)}
    if number is None and target is None and (found := recommend(experiment, list(rows.values()))):
        if found.chosen is None:
            raise BadInputError(
                "--target: no model meets search.constraints; give a target, or --trial with a number of the report"
            )
        number = found.chosen.number
    if number is None:
        number = _best_of(list(rows.values()), target)
    if number not in rows:
        raise BadInputError(f"--trial: {number} is no trial of {experiment.name!r}; allowed are 1 to {len(rows)}")
    row = rows[number]
    if row.trial.result is None:
        cause = f" ({row.trial.failure})" if row.trial.failure else ""
        done = ", ".join(str(number) for number in sorted(rows) if rows[number].trial.result) or "none yet"
        raise BadInputError(f"--trial: {number}, {row.trial.spec.name}, is {row.status}{cause}; done are: {done}")
    return row


def _best_of(rows: list[TrialRow], target: float | None) -> int:
    """The number of the trial with the lowest selection score among those that were planned for a target."""
    candidates = [row for row in rows if not row.is_control]
    labels = sorted((label for row in candidates for label in row.plan.labels), key=lambda label: label.target.ratio)
    targets = list(dict.fromkeys(map(_target, labels)))
    if target is None and len(targets) != 1:
        raise BadInputError(f"--target: give one of {', '.join(targets)}, or --trial with a number of the report")
    wanted = targets[0] if target is None else f"{target:.4g}"
    if wanted not in targets:
        raise BadInputError(f"--target: {wanted} was not searched; allowed are {', '.join(targets)}")
    candidates = [row for row in candidates if wanted in _bins(row)]
    bins = {bin for row in candidates for bin in _bins(row)[wanted]}
    of_targets = best_of_each_target([row.trial for row in rows])
    best = {id(trial) for (bin, _), trial in of_targets.items() if bin in bins}
    scored = [(loss, row.number) for row in candidates if id(row.trial) in best and (loss := row.loss) is not None]
    if not scored:
        states = ", ".join(f"{count} {status}" for status, count in Counter(row.status for row in candidates).items())
        raise BadInputError(f"--target: no trial of {wanted} has a selection score ({states}); run the search again")
    return min(scored)[1]


def _bins(row: TrialRow) -> dict[str, set[Bin]]:
    """What the plan of a trial competes in, by the target as users write it."""
    found: dict[str, set[Bin]] = {}
    for label in row.plan.labels:
        found.setdefault(_target(label), set()).update(replace(row.plan, labels=(label,)).targets)
    return found


def _target(label: PlanLabel) -> str:
    """A target as users write it: a count of blocks was turned into a fraction with many digits."""
    return f"{label.target.ratio:.4g}"


def check_destination(place: str) -> str:
    """The URL of a place where a model may be written.

    Raises:
        BadInputError: it cannot be written, or something lies there.
    """
    url = normalise(place)
    try:
        Store(url).probe()
    except BadInputError as error:
        raise BadInputError(str(error).replace("storage.url", "--to", 1)) from None
    found = [file.path for file in find_files(url)]  # hidden ones too
    if list_names(url) or not all(path.startswith(f"{PARTIAL}/") for path in found):
        raise BadInputError(f"--to: {place!r} is not empty; give a directory or URL that is empty or not there yet")
    return url


def export_trial(experiment: Experiment, row: TrialRow, url: str) -> None:
    """Write the model of a trial that is done, with its card and the licence of the dense model.

    A view is written from the dense files and proven by reloading; the files of a retrained model, which were proven
    when it was exported, are copied and compared with their hashes. Nothing is left of an attempt that fails, and the
    same command begins again where one was killed; see `placed`.

    Args:
        url: from `check_destination`.

    Raises:
        BadInputError: the model's files are gone, or are others by now; a disk has no room for a view.
        OSError: a copy does not have the hash of its record.
    """
    result = row.trial.result
    assert result is not None, "a row of choose_trial"
    _check_files(result.model, is_view=not result.runs)
    LOGGER.info("writing trial %d, %s, in %s", row.number, row.trial.spec.name, experiment.provenance.dtype)
    with placed(url) as directory:
        if result.runs:
            download_files(result.model.url, result.model.files, directory)
        else:
            export_view(result.model, directory, experiment.provenance.dtype)
        download_directory(experiment.dense_url, directory, LICENSE_FILES)
        for name, text in trial_card(experiment, row).items():
            (directory / name).write_text(text, encoding="utf-8")


def _check_files(model: ModelRef, *, is_view: bool) -> None:
    """A directory of the user may be gone, or have other weights by now, of the same sizes."""
    if not all(map(has_files, model.payloads)):
        raise BadInputError(
            f"EXPERIMENT: the model's files are gone from {model.url}; put them back, or run the search again, which "
            "retrains a model without files"
        )
    if is_view and is_local(model.url):
        directory = model_directory(model)
        for entry in model.files:
            if file_sha256(directory / entry.path) != entry.sha256:
                raise BadInputError(
                    f"EXPERIMENT: {directory / entry.path} has changed since the search read it; put the file back"
                )
