"""The picture in code: an import goes to a lower layer or stays in its own; so stages never import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "criteria": 0, "records": 0,
    "fingerprint": 0, "errors": 0, "credentials": 0, "metrics": 0, "logs": 0, "versions": 0, "fields": 0,
    "methods": 1,
    "config": 2, "cluster_metrics": 2, "attempts": 2,
    "storage": 3, "data": 4, "models": 5,
    "scoring": 6, "pruning": 6, "retraining": 6, "evaluation": 6, "reporting": 6,
    "search": 7, "jobs": 8,
}  # fmt: skip
# Third-party packages that only some of our modules may import.
OWNERS = {
    "fsspec": {"shortened_llm/storage"},
    "s3fs": {"shortened_llm/storage"},
    "ray": {
        "shortened_llm/search", "shortened_llm/retraining/worker.py", "shortened_llm/retraining/launch.py",
        "shortened_llm/retraining/run_directory.py", "shortened_llm/evaluation/pool.py", "jobs",
        "shortened_llm/cluster_metrics.py",
    },
    "torch": {
        "shortened_llm/models", "shortened_llm/data", "shortened_llm/scoring", "shortened_llm/retraining",
        "shortened_llm/evaluation", "shortened_llm/search", "shortened_llm/pruning", "jobs",
    },
}  # fmt: skip
FILES = sorted([*(ROOT / "shortened_llm").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if relative.parts[0] == "jobs" else relative.parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = part_of(path)
    if own == "__init__":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] not in ("shortened_llm", "jobs"):
            continue
        other = parts[1] if parts[0] == "shortened_llm" else "jobs"
        if other != own and other in LAYERS:
            assert LAYERS[other] < LAYERS[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_have_owners(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for name in imported(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or any(place.startswith(owner) for owner in owners), f"{place} imports {name}"


def test_the_core_runs_without_ray() -> None:
    """Only files with Ray in them, the search and the jobs import such files; all else works where there is no Ray."""
    with_ray = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if any(name.split(".")[0] == "ray" for name in imported(path)) and part_of(path) not in ("search", "jobs")
    }
    importers = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if part_of(path) not in ("search", "jobs")
        and any(name.startswith(f"{module}.") for name in imported(path) for module in with_ray)
    }
    assert importers <= with_ray


def test_tune_is_imported_by_the_tuner_alone() -> None:
    importers = {str(p.relative_to(ROOT)) for p in FILES if any(n.startswith("ray.tune") for n in imported(p))}
    assert importers == {"shortened_llm/search/cluster/tuner.py"}
