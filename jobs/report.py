"""Write the report of an experiment again, or one report of several; needs no configuration, Ray or torch."""

from collections.abc import Sequence
from dataclasses import replace

from jobs.cli import Parser, run
from shortened_llm.errors import BadInputError
from shortened_llm.records import Experiment
from shortened_llm.reporting.merge import merge_experiments
from shortened_llm.search.stored.experiment import experiment_directory, publish_to, read_experiment
from shortened_llm.storage.layout import REPORT, REPORTED
from shortened_llm.storage.urls import exists, join, normalise

MOST_NAMES = 4
"""In the name of a directory."""


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.report",
        description="Write the report of an experiment from what is stored by now, also while it runs or after a "
        "crash; or one report of several experiments on one dense model.",
    )
    parser.add_argument(
        "experiments",
        metavar="EXPERIMENT",
        nargs="+",
        help="path or URL of <storage>/experiments/<name>, its report directory or trials.json, or a name in ./results",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="directory or URL of the report; unless given, the experiment's own, or ./report-A-B of several",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """The last line on stdout is the path or URL of the report."""
    flags = make_parser().parse_args(arguments)
    places = list(dict.fromkeys(experiment_directory(place) for place in flags.experiments))
    found = [read_experiment(place) for place in places]
    if len(found) == 1:
        output, experiment = flags.output or own_report(places[0]), found[0]
    else:
        output, experiment = flags.output or f"report-{names(found)}", merge_experiments(distinct_names(found))
    output = normalise(output)
    try:
        print(publish_to(output, experiment))
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise BadInputError(f"--output: cannot write to {output!r} ({error}); give a directory or URL") from None


def own_report(directory: str) -> str:
    """Where an experiment's report lies: its own directory, for a `trials.json` that was copied alone."""
    return directory if exists(join(directory, REPORTED)) else join(directory, REPORT)


def names(experiments: Sequence[Experiment]) -> str:
    first = [experiment.name for experiment in experiments[:MOST_NAMES]]
    return "-".join(first) + (f"-and-{len(experiments) - MOST_NAMES}-more" if len(experiments) > MOST_NAMES else "")


def distinct_names(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Two storages may have experiments of one name: the later one gets a number."""
    seen: dict[str, int] = {}
    renamed = []
    for experiment in experiments:
        seen[experiment.name] = seen.get(experiment.name, 0) + 1
        number = seen[experiment.name]
        renamed.append(experiment if number == 1 else replace(experiment, name=f"{experiment.name} ({number})"))
    return renamed


if __name__ == "__main__":
    run(main)
