"""The files of cluster/, read as those who use them read them."""

import copy
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CUSTOM_RESOURCES = {"RayCluster": "kuberay/raycluster.yaml", "RayJob": "kuberay/rayjob.yaml"}
LAUNCHERS = ("aws.yaml", "gcp.yaml")
KUBERNETES = ("kuberay/access.yaml", *CUSTOM_RESOURCES.values())
CLUSTERS = (*CUSTOM_RESOURCES.values(), *LAUNCHERS)


def documents(name: str) -> list[dict[str, Any]]:
    """Every document of a YAML file."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def of_kind(kind: str) -> dict[str, Any]:
    """The one Kubernetes object of a kind."""
    (found,) = [document for name in KUBERNETES for document in documents(name) if document["kind"] == kind]
    return found


def ray_cluster_spec(name: str) -> dict[str, Any]:
    """The specification of the Ray cluster in one of KubeRay's files."""
    spec = documents(name)[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def prepared(name: str) -> dict[str, Any]:
    """A launcher's configuration with the provider's defaults, as `ray up` prepares it; raises if it is not valid."""
    config = prepare_config(copy.deepcopy(documents(name)[0]))
    validate_config(config)
    return config


def autoscaling(name: str) -> dict[str, Any]:
    """What Ray's autoscaler reads from a cluster's file."""
    if name in LAUNCHERS:
        return prepared(name)
    resource = {"metadata": {"name": "test", "namespace": "test"}, "spec": copy.deepcopy(ray_cluster_spec(name))}
    return _derive_autoscaling_config_from_ray_cr(resource)


def node_types(name: str) -> dict[str, dict[str, Any]]:
    """The node types of a cluster, the head's as `head`."""
    config = autoscaling(name)
    head = config["head_node_type"]
    return {("head" if key == head else key): value for key, value in config["available_node_types"].items()}


def pod_templates() -> dict[str, dict[str, Any]]:
    """Every pod template of KubeRay's files, by file and group."""
    templates = {"submitter": of_kind("RayJob")["spec"]["submitterPodTemplate"]}
    for name in CUSTOM_RESOURCES.values():
        spec = ray_cluster_spec(name)
        templates[f"{name} head"] = spec["headGroupSpec"]["template"]
        templates |= {f"{name} {group['groupName']}": group["template"] for group in spec["workerGroupSpecs"]}
    return templates


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined: `(instruction, arguments)`."""
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in kept)]


def environment() -> dict[str, str]:
    """The environment that the image sets."""
    return dict(pair.split("=", 1) for word, rest in dockerfile() if word == "ENV" for pair in rest.split())
