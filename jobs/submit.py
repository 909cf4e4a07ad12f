"""Run a search on a Ray cluster, as a job that outlives this process."""

import asyncio
import glob
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.cli import DONE, FAILED, INTERRUPTED, make_parser, parse_command, run
from shortened_llm.config import ExperimentConfig
from shortened_llm.errors import BadInputError, last_line
from shortened_llm.storage.urls import is_local

CONFIG = "config.yaml"
PATH_KEYS = ("path", "url", "task_directory")
NO_AGENT = "No available agent"
"""What the dashboard answers where it has nobody who would start the job."""
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str]) -> None:
    """stdout has the job's log, whose last line is the report; the exit code is the job's."""
    parser = make_parser("submit", "Run a search on a Ray cluster as a job, and follow its log.")
    parser.add_argument("--address", required=True, metavar="URL", help="the dashboard, such as http://127.0.0.1:8265")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and leave")
    config, flags = parse_command(parser, arguments, ["search", "evaluation"])
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells when the log ends
    here = urlsplit(flags.address).hostname in THIS_MACHINE
    values = with_absolute_paths(config.model_dump(mode="json", exclude_unset=True), here=here)
    client = _connect(flags.address)
    try:
        job = submit(client, config, values, dry_run=flags.dry_run)
    except RuntimeError as error:
        if NO_AGENT not in str(error):
            raise
        raise RuntimeError(
            f"the cluster at {flags.address} takes no job, since no job agent answers there; where another Ray runs on "
            "the head's machine, the agent's port is taken: start the head with --dashboard-agent-listen-port and a "
            "port that is free"
        ) from None
    print(f"submitted {job}; ray job logs -f {job} follows it, ray job stop {job} stops it", file=sys.stderr)
    if flags.no_wait:
        print(job)
        return
    sys.exit(follow(client, job))


def submit(
    client: JobSubmissionClient, config: ExperimentConfig, values: Mapping[str, object], *, dry_run: bool
) -> str:
    """Send the code and the configuration, and nothing else of this machine; returns the job's id.

    What the job needs besides, such as credentials, is in the cluster's image, environment or role: whatever a job is
    sent with can be read by everybody who sees the dashboard.
    """
    with tempfile.TemporaryDirectory(prefix="shortened_llm_job_") as directory:
        for package in ("jobs", "shortened_llm"):
            source = Path(__file__).parents[1] / package
            shutil.copytree(source, Path(directory) / package, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(directory) / CONFIG).write_text(yaml.safe_dump(dict(values), sort_keys=False))
        return str(
            client.submit_job(
                entrypoint=f"python -m jobs.search {CONFIG}" + (" --dry-run" if dry_run else ""),
                submission_id=f"{config.experiment}-{time.strftime('%Y%m%d-%H%M%S')}",
                runtime_env={"working_dir": directory},
                metadata={"experiment": config.experiment, "storage": config.storage.url},
            )
        )


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print the job's log until it ends; returns its exit code. Ctrl-C leaves the job running."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
        details = _ended(client, job)
    except KeyboardInterrupt:
        print(f"\n{job} runs on; ray job stop {job} stops it", file=sys.stderr)
        return INTERRUPTED
    if details.status == JobStatus.SUCCEEDED:
        return DONE
    print(f"{job} ended as {details.status}: {details.message}", file=sys.stderr)
    return details.driver_exit_code or FAILED


def with_absolute_paths(values: Mapping[str, object], *, here: bool) -> dict[str, object]:
    """The configuration for a job, which runs in a directory of its own.

    Args:
        here: whether the cluster is this machine, so that it reads the same files.

    Raises:
        BadInputError: a relative path, for a cluster that is elsewhere.
    """

    def mended(name: str, value: object) -> object:
        if isinstance(value, Mapping):
            return {key: mended(f"{name}.{key}".lstrip("."), inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [mended(name, inner) for inner in value]
        if not isinstance(value, str) or name.rsplit(".", 1)[-1] not in PATH_KEYS or not _is_relative(name, value):
            return value
        if not here:
            raise BadInputError(
                f"{name}: {value!r} is a directory of this machine, which the cluster does not read; give a URL, or an "
                "absolute path that all its nodes share"
            )
        return str(Path(value).absolute())

    mended_values = {key: mended(key, value) for key, value in values.items()}
    if "storage" not in mended_values:
        default = ExperimentConfig.model_fields["storage"].default.url
        mended_values["storage"] = {"url": mended("storage.url", default)}
    return mended_values


def _is_relative(name: str, path: str) -> bool:
    """Models and texts that are neither absolute nor here are taken for the id of a hub."""
    return is_local(path) and not Path(path).is_absolute() and (name == "storage.url" or bool(glob.glob(path)))


def _connect(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # of many classes: no server, no token, another Ray
        raise BadInputError(
            f"--address: {address!r} is no dashboard that takes jobs ({last_line(error)}); it is the one of port 8265, "
            "through a tunnel where it is elsewhere, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH gives its token"
        ) from None


def _ended(client: JobSubmissionClient, job: str) -> JobDetails:
    """The log ends a moment before the job's state says so."""
    while not (details := client.get_job_info(job)).status.is_terminal():
        time.sleep(0.5)
    return details


if __name__ == "__main__":
    run(main)
