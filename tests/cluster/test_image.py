"""The image: pinned by hash, in agreement with what the tests run, and without privileges."""

import re
import tomllib
from fnmatch import fnmatch

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.files import CLUSTER, ROOT, dockerfile, environment

LOCKS = ("requirements.lock", "torch-cuda.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(text: str) -> dict[str, str]:
    """Package name -> version."""
    return {canonicalize_name(n): v for n, v in re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", text, re.MULTILINE)}


CONSTRAINTS = pinned((ROOT / "constraints.txt").read_text())


@pytest.mark.parametrize("name", LOCKS)
def test_locks_agree_with_what_is_tested(name: str) -> None:
    lock = pinned((CLUSTER / name).read_text())
    assert {key: version for key, version in lock.items() if CONSTRAINTS.get(key, version) != version} == {}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_by_hash(name: str) -> None:
    text = re.sub(r"^#.*\n", "", (CLUSTER / name).read_text(), flags=re.MULTILINE)
    entries = text.replace("\\\n", " ").splitlines()
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9._-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", entry), entry[:80]


def test_the_locks_hold_what_the_project_needs() -> None:
    locked = {key: version for name in LOCKS for key, version in pinned((CLUSTER / name).read_text()).items()}
    extras = PROJECT["optional-dependencies"]
    launchers = [line for line in (CLUSTER / "requirements.in").read_text().splitlines() if not line.startswith("#")]
    for line in [*PROJECT["dependencies"], *extras["s3"], *extras["gcs"], *extras["optuna"], *launchers]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), line
    development = {canonicalize_name(Requirement(line).name) for line in extras["dev"]} - {"s3fs", "optuna"}
    assert not development & locked.keys()


def test_cuda_comes_in_its_own_variant_alone() -> None:
    common, cuda = (pinned((CLUSTER / name).read_text()) for name in LOCKS)
    assert not [name for name in common if name.startswith(("torch", "triton", "nvidia-", "cuda-"))]
    assert cuda["torch"] == CONSTRAINTS["torch"]
    assert any(name.startswith("nvidia-") for name in cuda)
    assert {name: cuda[name] for name in cuda.keys() & common.keys() if cuda[name] != common[name]} == {}


def test_packages_are_installed_by_hash() -> None:
    installs = [rest for word, rest in dockerfile() if word == "RUN" and "pip install" in rest]
    hashed = [rest for rest in installs if "--require-hashes --no-deps" in rest]
    assert [re.findall(r"-r /tmp/(\S+)", rest)[0] for rest in hashed] == ["torch-cuda.lock", "requirements.lock"]
    cpu, own = [rest for rest in installs if rest not in hashed]
    version = CONSTRAINTS["torch"]
    assert cpu == f'python -m pip install --no-cache-dir --no-deps --index-url "$TORCH_CPU_INDEX" torch=={version}+cpu'
    assert own.startswith("python -m pip install --no-cache-dir --no-deps --no-build-isolation /src ")
    assert own.endswith("python -m pip check")


def test_the_base_is_pinned_and_runs_what_the_project_supports() -> None:
    stages = [rest for word, rest in dockerfile() if word == "FROM"]
    base = re.fullmatch(r"python:(3\.11)\.\d+-slim-bookworm@sha256:[0-9a-f]{64} AS base", stages[0])
    assert base is not None
    assert stages[1:] == ["base AS torch-cuda", "base AS torch-cpu", "torch-${DEVICE}"]
    assert ("ARG", "DEVICE=cuda") in dockerfile()
    lock_script = (CLUSTER / "lock.sh").read_text()
    assert f"--python-version {base[1]} " in lock_script


def test_nothing_runs_as_root() -> None:
    instructions = dockerfile()
    users = [rest for word, rest in instructions if word == "USER"]
    assert users == ["1000:1000"]  # numeric, so that Kubernetes can tell that it is not root
    after = instructions[instructions.index(("USER", users[0])) :]
    assert ("CMD", '["python", "-m", "jobs.search", "--help"]') in after
    assert "ADD" not in {word for word, _ in instructions}


def test_ray_asks_for_a_token_and_reports_to_nobody() -> None:
    variables = environment()
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["HOME"] == "/home/ray"  # Ray's launchers read it from the image to place the token


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    patterns = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [pattern for pattern in patterns if pattern and not pattern.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [source for word, rest in dockerfile() if word == "COPY" for source in rest.split()[:-1]]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, rule) for rule in allowed), source
    for rule in allowed:
        assert any(fnmatch(source, rule) for source in copied), rule
