"""The files that belong to one experiment alone: `<storage>/experiments/<name>/`."""

import json
import shutil
import tempfile
from pathlib import Path

from shortened_llm.config import SearchConfig
from shortened_llm.records import Experiment
from shortened_llm.reporting.write import write_report
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join, read_bytes, write_bytes


def read_config(store: Store, name: str) -> dict[str, object] | None:
    """The configuration that an experiment was started with, as JSON; None for a new experiment."""
    try:
        return dict(json.loads(read_bytes(_config_url(store, name))))
    except FileNotFoundError:
        return None


def write_config(store: Store, config: SearchConfig) -> None:
    """Record the configuration of an experiment that begins or continues."""
    write_bytes(_config_url(store, config.experiment), config.model_dump_json(indent=2).encode())


def publish_report(store: Store, experiment: Experiment) -> str:
    """Write the report's files to storage, the page itself last; returns its path or URL."""
    url = join(store.experiment_url(experiment.name), "report")
    with tempfile.TemporaryDirectory(prefix="shortened_llm_report_") as temporary:
        directory = Path(temporary)
        page = write_report(experiment, directory)
        with tempfile.TemporaryDirectory(prefix="shortened_llm_page_") as last:
            shutil.move(page, Path(last) / page.name)
            upload_directory(directory, url)
            upload_directory(Path(last), url)
    return join(url, page.name)


def _config_url(store: Store, name: str) -> str:
    return join(store.experiment_url(name), "config.json")
