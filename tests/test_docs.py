"""The documentation: short where it is to be short, its links lead somewhere, its YAML and its commands work."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from jobs.fields import field_reference
from shortened_llm.config import parse_config
from shortened_llm.criteria import CRITERIA
from shortened_llm.methods import METHODS
from shortened_llm.models.families import TEXT_PARTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PARTS = ("cluster", "jobs", "shortened_llm", "tests")
PAGES = [README, *sorted(page for part in PARTS for page in (ROOT / part).rglob("*.md"))]
MOST_LINES = 140

YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"[a-z]+:")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def merged(values: Mapping, more: Mapping) -> dict:
    both = dict(values)
    for key, value in more.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def module_exists(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES


def test_the_field_reference_is_that_of_the_schema() -> None:
    assert (ROOT / "shortened_llm/FIELDS.md").read_text() == field_reference(), "`make fields` writes it anew"


@pytest.mark.parametrize(("stage", "names"), [("scoring", CRITERIA), ("retraining", METHODS)])
def test_every_row_is_described(stage: str, names: Mapping) -> None:
    text = (ROOT / "shortened_llm" / stage / "README.md").read_text()
    assert [name for name in names if f"| `{name}`" not in text] == []


def test_supported_families_are_those_that_a_test_finds_right() -> None:
    page = (ROOT / "shortened_llm/models/README.md").read_text()
    tested = (ROOT / "tests/search/test_every_family.py").read_text()
    right = re.findall(r'"(\w+)"', re.findall(r"^RIGHT = \((.*?)\)", tested, re.MULTILINE | re.DOTALL)[0])
    assert re.findall(r"`(\w+)`", page.partition("Each step is right for")[2].partition("## Refused")[0]) == right


def test_text_parts_are_listed() -> None:
    page = (ROOT / "shortened_llm/models/README.md").read_text()
    section = page.partition("## Text parts")[2].partition("the text")[0]
    assert re.findall(r"`(\w+)`", section) == sorted(TEXT_PARTS)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if ADDRESS.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_configurations_are_valid(page: Path) -> None:
    """Each piece of a configuration is one together with that of the README."""
    (whole,) = YAML.findall(README.read_text())
    for piece in YAML.findall(page.read_text()):
        parse_config(merged(yaml.safe_load(whole), yaml.safe_load(piece)))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_are_there(page: Path) -> None:
    modules = re.findall(r"\b((?:jobs|tests\.benchmarks)\.[a-z_]+)\b(?!/)", page.read_text())
    assert [name for name in modules if not module_exists(name)] == []
    targets = re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [target for target in targets if target not in known] == []
