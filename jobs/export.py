"""Write the model of a finished trial as a plain Hugging Face directory; needs no configuration or Ray."""

from collections.abc import Sequence

from jobs.cli import Parser, run
from shortened_llm.search.export import check_destination, choose_trial, export_trial
from shortened_llm.search.stored.experiment import read_experiment


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.export",
        description="Write the model of a finished trial, retrained or not, as a plain Hugging Face directory.",
    )
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="path or URL of <storage>/experiments/<name>, or a name in ./results",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--target", metavar="RATIO", type=float, help="the best trial of a ratio, such as 0.2")
    which.add_argument("--trial", metavar="N", type=int, help="the trial with this number in the report")
    parser.add_argument("--to", metavar="DIR", required=True, help="an empty or new directory or URL")
    return parser


def main(arguments: Sequence[str]) -> None:
    """The last line on stdout is the directory or URL."""
    flags = make_parser().parse_args(arguments)
    experiment = read_experiment(flags.experiment)
    row = choose_trial(experiment, target=flags.target, number=flags.trial)
    export_trial(experiment, row, check_destination(flags.to))
    print(flags.to)


if __name__ == "__main__":
    run(main)
