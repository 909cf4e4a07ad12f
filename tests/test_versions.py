"""Nodes with different libraries are told apart."""

import pytest

from shortened_llm.versions import Installed, VersionsDifferError, check_equal


def node(name: str, torch: str = "2.13.0+cu130", python: str = "3.11.9", *, uses_gpu: bool = True) -> Installed:
    return Installed(node=name, versions=(("python", python), ("torch", torch)), uses_gpu=uses_gpu)


def test_equal_nodes_pass() -> None:
    check_equal([node("a"), node("b"), node("head", "2.13.0+cpu", uses_gpu=False)])
    check_equal([Installed.here(uses_gpu=False), Installed.here(uses_gpu=True)])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (node("c", python="3.12.1"), "python differs between nodes: 3.11.9 on a, b; 3.12.1 on c"),
        (node("c", "2.11.0+cu130"), "torch differs between nodes: 2.11.0 on c; 2.13.0 on a, b"),
        (node("c", "2.13.0+cu128"), "the build of torch differs between nodes: cu128 on c; cu130 on a, b"),
    ],
)
def test_another_version_is_named_with_its_node(other: Installed, said: str) -> None:
    with pytest.raises(VersionsDifferError) as caught:
        check_equal([node("a"), node("b"), other])
    assert said in str(caught.value)
