"""What every entry point shares: configuration, flags, logging, Ray, signals and exit codes."""

import argparse
import contextlib
import difflib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsError

from jobs.config_file import read_config_file
from shortened_llm.config import (
    CalibrationConfig,
    DepthPruning,
    EvaluationConfig,
    ExperimentConfig,
    ResourcesConfig,
    RetrainingConfig,
    SearchSection,
    describe_errors,
    parse_config,
    require_sections,
)
from shortened_llm.credentials import hidden
from shortened_llm.errors import BadInputError, Faults, brief, last_line, original, path_fault
from shortened_llm.logs import LOGGER, setup_logging
from shortened_llm.storage.store import Store

if TYPE_CHECKING:
    from shortened_llm.search.cluster.capacity import Capacity

F = TypeVar("F")

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_received: list[int] = []
"""Signals that ended the program, other than Ctrl-C."""
ENDING_SECONDS = 5.0
"""For the workers of a local Ray to end; they hold what they keep on disk until then."""


class _Flags(ExperimentConfig, BaseSettings):
    """Every field of the configuration as a command-line flag. A section that may be a list has flags for the fields of
    a single entry, and one that may be absent shows the defaults that hold where it is given."""

    calibration: CalibrationConfig
    """Text that blocks are scored on; a list is an axis of the search."""
    pruning: DepthPruning = DepthPruning()
    """What is removed, and how it is chosen; a list is an axis of the search, each entry with its own criteria."""
    search: SearchSection
    retraining: RetrainingConfig
    evaluation: EvaluationConfig
    model_config = {**ExperimentConfig.model_config, "protected_namespaces": ()}

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: object, **__: object
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class Parser(argparse.ArgumentParser):
    """Raises `BadInputError` in place of a screen of usage, and takes no flag by its beginning alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise BadInputError(f"command line: {message}; {self.prog} --help lists the flags")

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(list(arguments))
        if unknown:
            given = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1, cutoff=0.5)
            self.error(f"{given} is no flag" + (f"; did you mean {near[0]}?" if near else ""))
        return parsed


def make_parser(verb: str, description: str) -> Parser:
    """A parser with the arguments of every entry point; a caller may add its own."""
    parser = Parser(
        prog=f"python -m jobs.{verb}",
        description=f"{description} Fields of the configuration are flags too, such as "
        '--search.ratios "[0.2, 0.4]"; a flag wins over the file.',
    )
    parser.add_argument(
        "config", metavar="CONFIG.yaml", nargs="+", help="the experiment's configuration; of several files, such as "
        "one for the experiment and one for its machines, a later one wins",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would run, write nothing")
    return parser


def output_directory(path: str) -> Path:
    """The type of a flag that names a directory, which need not exist."""
    if fault := "is empty" if not path else path_fault(path):
        raise argparse.ArgumentTypeError(f"{brief(path)!a} {fault}")
    found = Path(os.path.expanduser(path)).absolute()
    above = next(place for place in (found, *found.parents) if os.path.lexists(place))
    if not above.is_dir():
        raise argparse.ArgumentTypeError(f"{path!r}: {above} is a file; give a directory")
    if not os.access(above, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path!r}: {above} cannot be written to; give another directory")
    return found


def parse_command(
    parser: Parser, arguments: Sequence[str], needs: Sequence[str] = ()
) -> tuple[ExperimentConfig, argparse.Namespace]:
    """The configuration, flags over file, and the entry point's own arguments.

    Args:
        needs: sections that are optional in a configuration, but not for this entry point.

    Raises:
        BadInputError: the file or a value cannot be used, or a section that is needed is absent.
    """
    own = {action.dest for action in parser._actions}
    source: CliSettingsSource = CliSettingsSource(_Flags, cli_parse_args=False, root_parser=parser)
    parsed = parser.parse_args(arguments)
    flags = {name: value for name, value in vars(parsed).items() if name not in own and value is not None}
    values: dict = {}
    for path in parsed.config:
        values = _merge(values, read_config_file(Path(path)))
    try:
        merged = _merge(values, source(parsed_args=flags)())
    except (SettingsError, RecursionError) as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = f"--{field[1]}" if field else "a section"
        raise BadInputError(
            f"command line: {name}: is no JSON; give a whole section as JSON, or its fields by flags such as "
            f"{name}.FIELD"
        ) from None
    except ValidationError as error:
        raise BadInputError(describe_errors(error)) from None
    config = parse_config(merged)
    require_sections(config, needs, parser.prog.removeprefix("python -m "))
    return config, parsed


def _merge(values: dict, later: dict) -> dict:
    """Sections that both have are joined key by key; of everything else the later value holds."""
    merged = dict(values)
    for key, value in later.items():
        if isinstance(value, dict) and isinstance(merged.get(key), list):
            raise BadInputError(
                f"command line: --{key}.{next(iter(value), '')}: the file gives a list of {key} entries; give the "
                f"whole list as JSON, as in --{key} '[{{...}}, {{...}}]'"
            )
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def open_store(config: ExperimentConfig) -> Store:
    """The storage of a configuration; this process waits for it as long as the job does."""
    try:
        store = Store.at(config.storage.url, config.storage.outage_seconds)
    except BadInputError as error:
        raise BadInputError(f"storage.url: {error}") from None
    store.enter()
    return store


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line and leave with its exit code: 0 done, 1 failed, 2 bad input, 130 after Ctrl-C,
    143 after SIGTERM."""
    setup_logging()
    signal.signal(signal.SIGTERM, _stop)
    try:
        with _ray_ended():
            main(sys.argv[1:])
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + _received[0] if _received else INTERRUPTED)
    except Exception as error:
        if isinstance(cause := original(error), BadInputError):
            for line in str(cause).splitlines():
                print(f"error: {hidden(line)}", file=sys.stderr)
            sys.exit(BAD_INPUT)
        if os.environ.get("SHORTENED_LLM_TRACEBACK"):
            traceback.print_exc()
        print(f"failed: {hidden(last_line(error))}", file=sys.stderr)
        sys.exit(FAILED)


@contextlib.contextmanager
def _ray_ended() -> Iterator[None]:
    """At the end, a Ray that this program started ends too, and what its workers left on this disk is removed."""
    try:
        yield
    finally:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
            from shortened_llm.storage.scratch import remove_left_behind

            ray.shutdown()
            until = time.monotonic() + ENDING_SECONDS
            while remove_left_behind() and time.monotonic() < until:
                time.sleep(0.2)


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds as Ctrl-C does, so that the lease is released."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _received.append(number)
    raise KeyboardInterrupt


def connect_ray() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a submitted job), or start one on this machine."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        LOGGER.info("joining the Ray cluster at %s", os.environ["RAY_ADDRESS"])
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # 400 MB, for the dashboard's page of Train runs
        ray.init(log_to_driver=False, logging_level="ERROR")
    else:
        LOGGER.info("starting Ray on this machine")
        # Its processes share the cores. A thread that waits for another in a loop, as OpenMP's do unless they are told
        # otherwise, keeps that one from running: training of SmolLM2-135M on 2 cores is then five times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        )
    signal.signal(signal.SIGTERM, _stop)  # Ray installs a handler of its own, which aborts.


def check_with_placement(
    check: Callable[[], F], resources: ResourcesConfig, *, dry_run: bool, scores_within_trials: bool = False
) -> tuple[F, "Capacity"]:
    """What `check` finds, and what the cluster can hold; see `check_resources`. A dry run tells the faults of both at
    once; anything else joins or starts Ray only once the first has found none."""
    faults, found = Faults(), []
    with faults.gather():
        found.append(check())
    if not dry_run:
        faults.raise_any()
    capacity = []
    with faults.gather():
        capacity.append(check_placement(resources, dry_run=dry_run, scores_within_trials=scores_within_trials))
    faults.raise_any()
    return found[0], capacity[0]


def check_placement(resources: ResourcesConfig, *, dry_run: bool, scores_within_trials: bool) -> "Capacity":
    """Join or start Ray, and check that a trial can ever run there; returns what the cluster can hold. A dry run
    starts no Ray.

    Raises:
        BadInputError: see `check_resources` and `check_versions`.
    """
    # These import torch, which reports need not.
    from shortened_llm.search.cluster.capacity import Capacity, check_resources, local_capacity
    from shortened_llm.search.cluster.nodes import check_versions, running_nodes

    if dry_run and not os.environ.get("RAY_ADDRESS"):
        capacity = Capacity.of(local_capacity().nodes, resources.node_groups)
    else:
        connect_ray()
        check_versions()
        capacity = Capacity.of(running_nodes(), resources.node_groups)
    check_resources(resources, capacity, scores_within_trials=scores_within_trials)
    return capacity


# Stages exchange files, so the object store only carries small messages.
LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
