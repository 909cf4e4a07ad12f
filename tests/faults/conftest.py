"""What all drills share: a cluster whose nodes come and go, a small search, the result of it undisturbed."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Nodes, cluster
from tests.faults.searches import Search, Undisturbed, drill_values
from tests.faults.table import DRILLS, lines
from tests.ray.processes import end_processes_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if DRILLS:
        terminalreporter.section("faults")
        for line in lines():
            terminalreporter.write_line(line)


@pytest.fixture
def nodes(token_environment: dict[str, str]) -> Iterator[Nodes]:
    """A head alone."""
    with cluster(token_environment) as started:
        started.start_head()
        yield started


@pytest.fixture
def local_environment(token_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """For drivers that start Ray themselves, in a temporary directory of their own."""
    directory = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    yield {**token_environment, "RAY_TMPDIR": directory, "RAY_ADDRESS": ""}
    end_processes_of(directory)
    shutil.rmtree(directory, ignore_errors=True)


MakeSearch = Callable[..., Search]


@pytest.fixture
def make_search(tiny_values: dict, tmp_path: Path) -> Iterator[MakeSearch]:
    """Build the drills' search; sections given are merged into those of the configuration. None outlives its drill."""
    made: list[Search] = []

    def make(environment: dict[str, str], **sections: object) -> Search:
        values = drill_values(tiny_values)
        for name, section in sections.items():
            values[name] = {**values[name], **section} if isinstance(section, dict) else section
        made.append(Search(directory=tmp_path, values=values, environment=environment))
        return made[-1]

    yield make
    for search in made:
        search.kill()


UNDISTURBED: list[Undisturbed] = []


@pytest.fixture
def undisturbed(
    make_search: MakeSearch, local_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """The drills' search without any fault, run once for the session."""
    if not UNDISTURBED:
        directory = tmp_path_factory.mktemp("undisturbed")
        quiet = make_search(local_environment, experiment="undisturbed", storage={"url": str(directory / "results")})
        quiet.start().wait_for(quiet.done, "first trial")
        begun = directory / "begun"
        shutil.copytree(quiet.storage, begun, ignore=shutil.ignore_patterns(".*", "experiments"))
        quiet.end()
        UNDISTURBED.append(Undisturbed(experiment=quiet.experiment(), begun=begun))
    return UNDISTURBED[0]
