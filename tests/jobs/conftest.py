"""Entry points as a user runs them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.cli import run

Main = Callable[[list[str]], None]


@pytest.fixture
def command(tmp_path: Path, tiny_values: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run an entry point on the valid configuration with changes; returns (exit code, stdout, stderr)."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(main: Main, *arguments: str, values: dict | None = None) -> tuple[int, str, str]:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(values or tiny_values))
        monkeypatch.setattr(sys, "argv", ["job", str(config), *arguments])
        code = 0
        try:
            run(main)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
