"""Show, or remove, what no experiment of a storage needs any more; needs no configuration, Ray or torch."""

import datetime
from collections.abc import Sequence

from jobs.cli import Parser, run
from shortened_llm.errors import BadInputError
from shortened_llm.search.stored.unneeded import Unneeded, find_unneeded, remove
from shortened_llm.storage.layout import cleaning_url
from shortened_llm.storage.lease import hold_lease
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import is_directory, reached

MOST_HOURS = 1_000_000
SHOWN_NAMES = 3


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.clean",
        description="Show what no experiment of a storage needs any more: payloads that no record names, checkpoints "
        "of finished experiments, records of experiments that were removed. An experiment that is running is left "
        "alone. To let go of an experiment, remove its directory below STORAGE/experiments first.",
    )
    parser.add_argument("storage", metavar="STORAGE", help="directory or URL, as in storage.url")
    parser.add_argument("--remove", action="store_true", help="remove it; without this it is only shown")
    parser.add_argument(
        "--min-age",
        metavar="HOURS",
        type=float,
        default=24.0,
        help="leave alone what was written in the last HOURS (24), by the clock of the storage; while a search runs, "
        "unfinished payloads are left alone for 24 hours at the least",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """A table on stdout, one line for each kind."""
    flags = make_parser().parse_args(arguments)
    if not 0 <= flags.min_age <= MOST_HOURS:
        raise BadInputError(f"--min-age: is {flags.min_age:g}; allowed are hours from 0 to {MOST_HOURS:,}")
    if not flags.storage:
        raise BadInputError("STORAGE: is empty; give the storage.url of a configuration")
    store = Store.at(flags.storage)
    with reached(f"STORAGE: {store.url!r}"):
        if not is_directory(store.url):
            raise BadInputError(f"STORAGE: {store.url!r} is no directory; give the storage.url of a configuration")
    min_age = datetime.timedelta(hours=flags.min_age)
    if not flags.remove:
        found = find_unneeded(store, min_age=min_age)
        print(table(found))
        print(f"nothing was removed; to do so: python -m jobs.clean {flags.storage} --remove" if found else "")
        return
    with hold_lease(cleaning_url(store.url)) as lease:  # no search begins meanwhile, and nobody else removes anything
        found = find_unneeded(store, min_age=min_age, now=lease.now())
        print(table(found))
        remove(store, found)
    print(f"removed {len(found)} things, {size(sum(thing.num_bytes for thing in found))}")


def table(things: Sequence[Unneeded]) -> str:
    """Kinds, counts, bytes and first names; one line that says so where there is nothing."""
    if not things:
        return "nothing to remove"
    lines = [f"{'kind':<14}{'count':>8}{'size':>12}  first"]
    for kind in dict.fromkeys(thing.kind for thing in things):
        of_kind = [thing for thing in things if thing.kind == kind]
        names = ", ".join(thing.path for thing in of_kind[:SHOWN_NAMES])
        names += ", ..." if len(of_kind) > SHOWN_NAMES else ""
        lines.append(f"{kind:<14}{len(of_kind):>8}{size(sum(thing.num_bytes for thing in of_kind)):>12}  {names}")
    return "\n".join(lines)


def size(num_bytes: int) -> str:
    """`12.3 MB`, in powers of 1000."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


if __name__ == "__main__":
    run(main)
