"""The Grafana dashboard shows what exists: metrics of the code, and metrics of Ray by their true names."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from ray.train.v2._internal.metrics.controller import ControllerMetrics

from shortened_llm import cluster_metrics

FILES = sorted((Path(__file__).parents[1] / "cluster/grafana").glob("*.json"))
OURS = {metric.exported_name: metric for metric in cluster_metrics.ALL}
RAYS = {f"ray_{name}" for name in (*METRICS_GAUGES, *ControllerMetrics.get_controller_metrics("run", "id"))}
RAYS_LABELS = {"SessionName", "instance", "GpuIndex", "ray_train_controller_state"}


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def dashboard(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


def queries(dashboard: dict) -> Iterator[tuple[str, str]]:
    """Each expression with its legend; those of variables have none."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], target["legendFormat"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"], ""


def test_there_is_a_dashboard() -> None:
    assert FILES


def test_every_metric_exists_and_every_own_one_is_shown(dashboard: dict) -> None:
    named = {name for expression, _ in queries(dashboard) for name in re.findall(r"\bray_\w+", expression)}
    labels = {"ray_train_controller_state"}  # a label that is named like its metric
    assert named - labels <= OURS.keys() | RAYS
    assert OURS.keys() <= named
    assert {"ray_node_gpus_utilization", "ray_node_gram_used"} <= named


def test_only_labels_that_a_metric_has_are_asked_for(dashboard: dict) -> None:
    for expression, legend in queries(dashboard):
        asked = set(re.findall(r"(\w+)=~", expression)) | set(re.findall(r"{{(\w+)}}", legend))
        asked |= {label for group in re.findall(r"by \((\w+)\)", expression) for label in group.split(",")}
        for name in re.findall(r"\bray_\w+(?={|,)", expression):
            assert asked <= (set(OURS[name].tags) if name in OURS else RAYS_LABELS), expression


def test_it_has_what_grafana_needs(dashboard: dict) -> None:
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["title"]
    assert dashboard["uid"]
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([[query for query, _ in queries(dashboard)], panels])))
    assert used <= variables.keys()
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert [target["refId"] for target in panel["targets"]] == list("ABCD"[: len(panel["targets"])])
