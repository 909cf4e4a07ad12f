"""The disk of a worker is full."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import MakeSearch
from tests.faults.searches import Undisturbed, check_whole
from tests.faults.table import record

DISK_MIB = 256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for temporary files."""
    directory = Path(tempfile.mkdtemp(prefix="disk", dir=tmp_path))
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    size = f"size={DISK_MIB}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "drill", directory], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        while True:
            try:
                stream.write(b"\0" * 2**20)
            except OSError:
                return filler


@pytest.mark.timeout(900)
def test_a_trial_on_a_full_disk_says_so_and_the_others_go_on(
    make_search: MakeSearch, undisturbed: Undisturbed, local_environment: dict[str, str], small_disk: Path
) -> None:
    """Space returns before the second trial; the same command then does what is left of the first."""
    # Python looks for another directory where a new process finds no space: the first must not be started again.
    search = make_search({**local_environment, "TMPDIR": str(small_disk)}, search={"max_failures": 0})
    search.begin_with(undisturbed, trial=False).start()
    search.wait_for(search.reached, "step")
    filler = fill(small_disk)
    full = time.monotonic()
    search.wait_for(search.failures, "failure of the first trial")
    filler.unlink()
    (cause,) = search.failures()
    assert cause.startswith("CheckpointError: no space left on the disk of")
    search.end(code=1)
    assert "1 of 2 trials failed" in search.said
    assert cause in search.said
    failed = [trial for trial in search.experiment().trials if trial.failure]
    assert [trial.failure for trial in failed] == [cause]
    finished = search.done()
    assert len(finished) == 1

    search.start()
    search.wait_for(search.reached, "step after the start")
    seconds = time.monotonic() - full
    search.end()
    assert {name: search.done()[name] for name in finished} == finished
    check_whole(search, undisturbed)
    record("a worker's disk is full; the command again", tokens_lost=search.lost_tokens(), seconds=seconds)
