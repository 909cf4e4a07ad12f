"""What a user's Prometheus and browser would see of a cluster."""

import json
import threading
import urllib.request
from types import TracebackType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.ray.conftest import Cluster

Series = dict[frozenset[tuple[str, str]], list[float]]


def metric_addresses(cluster: Cluster) -> list[str]:
    """host:port of every endpoint, from the file that Ray writes for Prometheus."""
    found = json.loads((cluster.directory / "prom_metrics_service_discovery.json").read_text())
    return [address for group in found for address in group["targets"]]


def get_json(cluster: Cluster, path: str) -> Any:
    """An answer of the dashboard's REST interface, asked for with the cluster's token."""
    with open(cluster.environment["RAY_AUTH_TOKEN_PATH"]) as stream:
        token = stream.read().strip()
    request = urllib.request.Request(cluster.dashboard_url + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


class Scraper:
    """Scrapes every second while the context lasts, and keeps each value of each series."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.series: dict[str, Series] = {}
        """By the metric's name, then by its labels."""

    def __enter__(self) -> "Scraper":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def of(self, name: str, **labels: str) -> list[float]:
        """Values of the series of this name that have these labels, each series in order of time."""
        series = self.series.get(name, {})
        return [value for tags, values in series.items() if labels.items() <= dict(tags).items() for value in values]

    def _follow(self) -> None:
        while not self._closed.wait(1.0):
            for address in metric_addresses(self._cluster):
                try:
                    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                        text = answer.read().decode()
                except OSError:
                    continue
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        values = self.series.setdefault(sample.name, {}).setdefault(
                            frozenset(sample.labels.items()), []
                        )
                        values.append(sample.value)
