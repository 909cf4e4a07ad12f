"""How much memory a container leaves."""

from pathlib import Path

import psutil

from shortened_llm.models.cpu import available_memory


def test_files_that_a_container_has_read_are_free_memory(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > 0.5 * psutil.virtual_memory().available
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\nactive_file 100000\ninactive_file 600000\n")
    assert available_memory(tmp_path) == 700_000


def test_a_container_without_a_limit_has_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert available_memory(tmp_path) > 1_000_000
