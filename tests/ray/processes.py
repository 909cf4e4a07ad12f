"""The processes of a Ray cluster, found by its temporary directory: `ray stop` would end those of others too."""

import contextlib
import signal

import psutil


def end_processes_of(directory: str) -> None:
    """End the processes of the cluster with this temporary directory, and no other."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        mine = [process for process in psutil.process_iter() if _belongs_to(process, directory)]
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs(mine, timeout=8)


def _belongs_to(process: psutil.Process, directory: str) -> bool:
    try:
        return any(directory in argument for argument in process.cmdline()) or (
            process.environ().get("RAY_TMPDIR") == directory
        )
    except psutil.Error:
        return False
