"""The clusters' files: what reads them accepts them, and all say the same."""

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray._private import ray_constants
from ray.scripts.scripts import start

from jobs.cli import make_parser
from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.search.cluster.capacity import Capacity, Nodes, check_resources, driver_demand
from tests.cluster.files import (
    CLUSTER,
    CLUSTERS,
    CUSTOM_RESOURCES,
    KUBERNETES,
    LAUNCHERS,
    ROOT,
    autoscaling,
    dockerfile,
    documents,
    environment,
    node_types,
    of_kind,
    pod_templates,
    prepared,
    ray_cluster_spec,
)

POOLS = {
    "head": "head",
    "gpu-spot": "training",
    "gpu-on-demand": "training",
    "evaluation": "evaluation",
    "cpu": "cpu",
}
POD_TEMPLATES = pod_templates()


def unknown_fields(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths that a structural schema does not name: Kubernetes drops them silently."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_fields(item, schema.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if inner is None:
                yield f"{path}.{key}"
            elif isinstance(inner, dict):
                yield from unknown_fields(item, inner, f"{path}.{key}")


def published_schema(kind: str) -> dict[str, Any]:
    """The schema of KubeRay's own definition of a kind, version v1."""
    directory = os.environ.get("KUBERAY_CRDS")
    if directory is None:
        pytest.skip("KUBERAY_CRDS does not name a directory with KubeRay's custom resource definitions")
    definition = yaml.safe_load((Path(directory) / f"ray.io_{kind.lower()}s.yaml").read_text())
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return version["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("kind", CUSTOM_RESOURCES)
def test_kuberay_accepts_its_files(kind: str) -> None:
    resource, schema = of_kind(kind), published_schema(kind)
    jsonschema.validate(resource, schema)
    assert list(unknown_fields({"spec": resource["spec"]}, schema)) == []


def test_unknown_fields_are_found() -> None:
    schema = {"properties": {"a": {"items": {"properties": {"b": {}}}}, "c": {"additionalProperties": {}}}}
    assert list(unknown_fields({"a": [{"b": 1}, {"x": 1}], "c": {"any": 1}, "y": 1}, schema)) == [".a[1].x", ".y"]


def test_ec2_accepts_its_machines() -> None:
    request = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for key, node_type in node_types("aws.yaml").items():
        machine = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        assert ParamValidator().validate(machine, request).generate_report() == "", key


def test_a_job_has_the_cluster_of_raycluster() -> None:
    assert ray_cluster_spec("kuberay/rayjob.yaml") == ray_cluster_spec("kuberay/raycluster.yaml")


@pytest.mark.parametrize("name", CLUSTERS)
def test_groups_are_those_of_the_readme(name: str) -> None:
    types = node_types(name)
    assert {key: value["labels"] for key, value in types.items()} == {key: {"pool": POOLS[key]} for key in POOLS}
    readme = (CLUSTER / "README.md").read_text()
    for key, pool in POOLS.items():
        assert f"`{key}`" in readme
        assert f"`pool: {pool}`" in readme


@pytest.mark.parametrize("name", CLUSTERS)
def test_drivers_of_trials_run_on_the_head_and_nothing_else_does(name: str) -> None:
    types = node_types(name)
    assert [key for key, value in types.items() if "trial_driver" in value["resources"]] == ["head"]
    head = types["head"]["resources"]
    assert head["CPU"] == 0
    assert head.get("GPU", 0) == 0
    assert head["trial_driver"] >= search_config().search.max_concurrent_trials


@pytest.mark.parametrize("name", CLUSTERS)
def test_groups_start_from_nothing_and_end_when_idle(name: str) -> None:
    types = node_types(name)
    assert {value["min_workers"] for value in types.values()} == {0}
    assert all(value["max_workers"] > 0 for key, value in types.items() if key != "head")
    config = autoscaling(name)
    assert config["max_workers"] == sum(value["max_workers"] for value in types.values())
    assert 0 < config["idle_timeout_minutes"] <= 10
    if name not in LAUNCHERS:
        spec = ray_cluster_spec(name)
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert all(group["replicas"] == 0 for group in spec["workerGroupSpecs"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_spot_machines_come_first_and_only_where_they_should(name: str) -> None:
    types = node_types(name)
    priorities = {key: value["priority"] for key, value in types.items() if key != "head"}
    assert sorted(priorities, key=priorities.__getitem__, reverse=True)[:2] == ["gpu-spot", "gpu-on-demand"]
    assert len(set(priorities.values())) == 3
    spot = {key for key in types if is_spot(name, key)}
    assert spot == {"gpu-spot"}
    assert types["gpu-spot"]["resources"] == types["gpu-on-demand"]["resources"]


def is_spot(name: str, group: str) -> bool:
    """Whether the machines of a group may be taken back by the cloud."""
    if name in LAUNCHERS:
        config = node_types(name)[group]["node_config"]
        market = config.get("InstanceMarketOptions", {}).get("MarketType")
        return market == "spot" or config.get("scheduling", {}).get("provisioningModel") == "SPOT"
    affinity = POD_TEMPLATES[f"{name} {group}"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    operators = {expression["operator"] for term in terms for expression in term["matchExpressions"]}
    keys = {expression["key"] for term in terms for expression in term["matchExpressions"]}
    assert len(keys) == 4
    # Any of the terms lets a node in, all expressions of a term must hold: spot by whichever key the cloud has, on
    # demand only by all of them.
    assert (operators, len(terms)) in (({"In"}, 4), ({"NotIn"}, 1))
    return operators == {"In"}


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("kuberay/raycluster.yaml", "nvidia-tesla-a100"),
        ("kuberay/rayjob.yaml", "nvidia-tesla-a100"),
        ("aws.yaml", "p4d.24xlarge"),
        ("gcp.yaml", "a2-highgpu-8g"),
    ],
)
def test_the_gpu_type_is_named_once(name: str, gpu: str) -> None:
    assert (CLUSTER / name).read_text().count(gpu) == 1
    if name in LAUNCHERS:
        groups = [node_types(name)[key]["node_config"] for key in ("gpu-spot", "gpu-on-demand")]
        assert all(gpu in config.values() for config in groups)
    else:
        keys = ("gpu-spot", "gpu-on-demand", "evaluation")
        selectors = [POD_TEMPLATES[f"{name} {key}"]["spec"]["nodeSelector"] for key in keys]
        assert all(list(selector.values()) == [gpu] for selector in selectors)


@pytest.mark.parametrize("key", POD_TEMPLATES)
def test_pods_run_without_privileges(key: str) -> None:
    pod = POD_TEMPLATES[key]["spec"]
    user = int(user_of_the_image().split(":")[0])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == user
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
    for container in pod["containers"]:
        check_container(container["securityContext"])


@pytest.mark.parametrize("name", CUSTOM_RESOURCES.values())
def test_the_autoscaler_runs_without_privileges(name: str) -> None:
    check_container(ray_cluster_spec(name)["autoscalerOptions"]["securityContext"])


def check_container(security: dict[str, Any]) -> None:
    assert security == {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def user_of_the_image() -> str:
    return [rest for word, rest in dockerfile() if word == "USER"][-1]


@pytest.mark.parametrize("name", [*KUBERNETES, *LAUNCHERS, "Dockerfile", "README.md"])
def test_no_secret_is_written_down(name: str) -> None:
    text = re.sub(r"@sha256:[0-9a-f]{64}", "", (CLUSTER / name).read_text())
    assert not re.search(r"A[KS]IA[0-9A-Z]{16}|PRIVATE KEY|hf_[A-Za-z0-9]{20}|[0-9a-f]{64}", text)
    assert not re.search(r"(?i)(secret|access_key|token|password|credential)\w*\s*[=:]\s*['\"]?[A-Za-z0-9/+]{16}", text)


def test_secrets_come_from_outside() -> None:
    for key, template in POD_TEMPLATES.items():
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                if re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", variable["name"]):
                    assert variable.keys() == {"name", "valueFrom"}, key
                    assert variable["valueFrom"].keys() == {"secretKeyRef"}, key
    for word, rest in dockerfile():
        if word in ("ENV", "ARG"):
            assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", rest)
    for name in LAUNCHERS:
        config = documents(name)[0]
        assert not {"aws_credentials", "gcp_credentials"} & config["provider"].keys()
        options = [*config["docker"]["run_options"], *config["docker"].get("head_run_options", [])]
        assert not [option for option in options if option.startswith(("-e", "--env"))]


def test_storage_is_reached_by_role() -> None:
    accounts = [d for d in documents("kuberay/access.yaml") if d["kind"] == "ServiceAccount"]
    for account in accounts:
        assert account["metadata"]["annotations"].keys() == {
            "eks.amazonaws.com/role-arn",
            "iam.gke.io/gcp-service-account",
        }
    used = {t["spec"].get("serviceAccountName") for key, t in POD_TEMPLATES.items() if key != "submitter"}
    assert used == {account["metadata"]["name"] for account in accounts}
    for node_type in node_types("aws.yaml").values():
        assert node_type["node_config"]["IamInstanceProfile"].keys() == {"Name"}
        assert node_type["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    for node_type in node_types("gcp.yaml").values():
        (account,) = node_type["node_config"]["serviceAccounts"]
        assert account["email"].endswith("@my-project.iam.gserviceaccount.com")


def test_workers_have_a_role_of_their_own() -> None:
    """The head may start machines; what a worker runs must not."""
    for name in CUSTOM_RESOURCES.values():
        accounts = {key: POD_TEMPLATES[f"{name} {key}"]["spec"]["serviceAccountName"] for key in POOLS}
        assert accounts == {key: f"shortened-llm-{'head' if key == 'head' else 'worker'}" for key in POOLS}
    for key, value in node_types("aws.yaml").items():
        profile = value["node_config"]["IamInstanceProfile"]["Name"]
        assert profile == f"shortened-llm-{'head' if key == 'head' else 'worker'}"
    for key, value in node_types("gcp.yaml").items():
        (account,) = value["node_config"]["serviceAccounts"]
        assert account["email"].startswith(f"shortened-llm-{'head' if key == 'head' else 'worker'}@")


def test_pods_are_reached_by_one_another_and_the_operator() -> None:
    spec = of_kind("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    own = spec["podSelector"]["matchLabels"]
    for key, template in POD_TEMPLATES.items():
        assert own.items() <= template["metadata"]["labels"].items(), key
    pods, operator = spec["ingress"]
    assert pods == {"from": [{"podSelector": {"matchLabels": own}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    for name in CUSTOM_RESOURCES.values():
        head = ray_cluster_spec(name)["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP"
        assert not head.get("enableIngress")
        ports = {port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
        assert ports == {6379, 8265}  # the Ray client's 10001 is no port of the service


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_process_has_the_token(name: str) -> None:
    if name in LAUNCHERS:
        home = environment()["HOME"]
        assert documents(name)[0]["file_mounts"] == {f"{home}/.ray/auth_token": "~/.ray/auth_token"}
    else:
        assert ray_cluster_spec(name)["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_commands_of_virtual_machines_start_ray(name: str) -> None:
    config = prepared(name)
    (head,) = [started(command) for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [started(command) for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert not worker["head"]
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert head["object_manager_port"] == worker["object_manager_port"]
    # The node types say what a machine has: here it would be said twice.
    for options in (head, worker):
        assert options["disable_usage_stats"]
        assert (options["num_cpus"], options["num_gpus"], options["resources"], options["labels"]) == (
            None, None, "{}", "",
        )  # fmt: skip


def started(command: str) -> dict[str, Any]:
    """Options of a `ray start` command, by Ray's own parser."""
    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    return start.make_context("ray start", words[2:]).params


@pytest.mark.parametrize("name", CUSTOM_RESOURCES.values())
def test_the_parameters_of_pods_start_ray(name: str) -> None:
    spec = ray_cluster_spec(name)
    head = spec["headGroupSpec"]["rayStartParams"]
    options = started("ray start --head " + " ".join(f"--{key}={value}" for key, value in head.items()))
    assert options["dashboard_host"] == "0.0.0.0"  # the operator follows jobs there: see the network policy
    assert all(group["rayStartParams"] == {} for group in spec["workerGroupSpecs"])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_virtual_machines_have_a_network_of_the_users(name: str) -> None:
    for node_type in node_types(name).values():
        config = node_type["node_config"]
        assert config.get("SecurityGroupIds") or config["networkInterfaces"][0]["subnetwork"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_end_of_a_spot_machine_is_announced(name: str) -> None:
    check, announce = node_types(name)["gpu-spot"]["worker_setup_commands"]
    assert documents(name)[0]["setup_commands"] == [check]  # those of a type replace the general ones
    script = "announce_preemption.py"
    assert f"/opt/shortened_llm/{script} {name.removesuffix('.yaml')} " in announce
    assert ("COPY", f"cluster/{script} /opt/shortened_llm/") in dockerfile()
    assert [key for key, value in node_types(name).items() if "worker_setup_commands" in value] == ["gpu-spot"]


@pytest.mark.parametrize("name", CUSTOM_RESOURCES.values())
def test_a_pod_that_ends_has_time_for_a_checkpoint(name: str) -> None:
    variable = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, variable)
    for key in ("gpu-spot", "gpu-on-demand"):
        pod = POD_TEMPLATES[f"{name} {key}"]["spec"]
        (seconds,) = [v["value"] for v in pod["containers"][0]["env"] if v["name"] == variable]
        assert 60 <= float(seconds) < pod["terminationGracePeriodSeconds"]


def test_one_image_of_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    image = f"registry.example.com/shortened-llm:{version}-cuda"
    for key, template in POD_TEMPLATES.items():
        assert [container["image"] for container in template["spec"]["containers"]] == [image], key
    for name in LAUNCHERS:
        config = documents(name)[0]
        assert config["docker"]["image"] == image
        types = config["available_node_types"].values()
        assert not [t for t in types if {"worker_image", "head_image"} & t.get("docker", {}).keys()]
    for name in ("Dockerfile", "README.md"):
        assert set(re.findall(r"registry\.example\.com/\S+?-cuda", (CLUSTER / name).read_text())) == {image}


@pytest.mark.parametrize("name", CUSTOM_RESOURCES.values())
def test_ray_is_the_version_of_the_image(name: str) -> None:
    (version,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray_cluster_spec(name)["rayVersion"] == version


def search_config() -> ExperimentConfig:
    return parse_config(yaml.safe_load(of_kind("ConfigMap")["data"]["search.yaml"]))


def test_the_job_runs_the_search_of_its_config_map() -> None:
    python, flag, module, *arguments = shlex.split(of_kind("RayJob")["spec"]["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "jobs.search")
    (config,) = make_parser("search", "").parse_args(arguments).config
    path = Path(config)
    config_map = of_kind("ConfigMap")
    assert path.name in config_map["data"]
    pod = POD_TEMPLATES["kuberay/rayjob.yaml head"]["spec"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    assert (mount["mountPath"], mount["name"]) == (str(path.parent), volume["name"])
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]


@pytest.mark.parametrize("name", CUSTOM_RESOURCES.values())
def test_the_search_fits_the_cluster(name: str) -> None:
    config, types = search_config(), node_types(name)
    resources = config.resources
    groups = {key: value for key, value in types.items() if key != "head"}
    assert [(group.max_nodes, group.cpus, group.gpus, group.labels) for group in resources.node_groups] == [
        (t["max_workers"], t["resources"]["CPU"], t["resources"].get("GPU", 0), t["labels"]) for t in groups.values()
    ]
    empty = Capacity.of([Nodes(resources=types["head"]["resources"])], resources.node_groups)
    check_resources(resources, empty)
    assert driver_demand(empty) == {"trial_driver": 1.0}
    training = [types[key] for key in ("gpu-spot", "gpu-on-demand")]
    for node_type in training:  # a trial has a machine to itself
        assert resources.max_workers * resources.gpus_per_worker == node_type["resources"]["GPU"]
        assert resources.max_workers * resources.cpus_per_worker < node_type["resources"]["CPU"]
    assert config.search.max_concurrent_trials <= sum(node_type["max_workers"] for node_type in training)
    where = [t for t in types.values() if resources.evaluator_labels.items() <= t["labels"].items()]
    assert where == [types["evaluation"]]
    assert resources.gpus_per_evaluator <= where[0]["resources"]["GPU"]
    assert resources.cpus_per_evaluator <= where[0]["resources"]["CPU"]
    room = resources.evaluators * resources.gpus_per_evaluator
    assert room <= where[0]["max_workers"] * where[0]["resources"]["GPU"]


def test_a_job_leaves_nothing_behind_and_survives_the_head() -> None:
    spec = of_kind("RayJob")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] <= 600
    assert spec["backoffLimit"] >= 1
    assert "clusterSelector" not in spec  # KubeRay starts a cluster anew only where it is the job's own


@pytest.mark.parametrize("kind", CUSTOM_RESOURCES)
def test_kueue_admits_it(kind: str) -> None:
    metadata = of_kind(kind)["metadata"]
    assert metadata["labels"] == {"kueue.x-k8s.io/queue-name": "shortened-llm"}
    assert metadata["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}


def test_every_file_is_in_the_readme() -> None:
    readme = (CLUSTER / "README.md").read_text()
    names = [str(path.relative_to(CLUSTER)) for path in CLUSTER.rglob("*") if path.is_file()]
    missing = [name for name in names if name not in readme and name != "README.md"]
    assert missing == []
