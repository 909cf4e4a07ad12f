"""Show how far a search is, from what is stored; needs no configuration, Ray or torch."""

from collections.abc import Sequence

from jobs.cli import Parser, run
from shortened_llm.records import to_json
from shortened_llm.search.status import describe_status, read_status


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.status",
        description="Show how far a search is, also while it runs or after a crash: trials by state, tokens, cost.",
    )
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="path or URL of <storage>/experiments/<name>, or a name in ./results",
    )
    parser.add_argument("--json", action="store_true", help="all of it as one line of JSON")
    return parser


def main(arguments: Sequence[str]) -> None:
    """stdout has the status."""
    flags = make_parser().parse_args(arguments)
    status = read_status(flags.experiment)
    print(to_json(status, indent=None) if flags.json else describe_status(status))


if __name__ == "__main__":
    run(main)
