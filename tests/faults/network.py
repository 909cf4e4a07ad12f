"""Networks of their own for nodes on one machine, and a bridge between them whose links can go down."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

NAME = "drill"
SUBNET = "10.213.77"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One node's network namespace and its cable."""

    namespace: str
    address: str
    cable: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Runs a command in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def down(self) -> None:
        """Packets are dropped without a word to either side."""
        _ip("link", "set", self.cable, "down")

    def up(self) -> None:
        _ip("link", "set", self.cable, "up")


def why_impossible() -> str | None:
    """Why this machine can have no namespaces, or None."""
    if shutil.which("ip") is None:
        return "the command `ip` of iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["ip", "netns", "add", f"{NAME}-probe"], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces cannot be made: {tried.stderr.strip()}"
    _ip("netns", "del", f"{NAME}-probe")
    return None


@contextlib.contextmanager
def bridged(count: int) -> Iterator[tuple[str, list[Link]]]:
    """The address of this machine on a bridge, and namespaces that reach it and one another."""
    links = [
        Link(namespace=f"{NAME}-{number}", address=f"{SUBNET}.{number + 2}", cable=f"{NAME}{number}")
        for number in range(count)
    ]
    _remove(links)
    try:
        _ip("link", "add", NAME, "type", "bridge")
        _ip("address", "add", f"{SUBNET}.1/24", "dev", NAME)
        _ip("link", "set", NAME, "up")
        for link in links:
            _ip("netns", "add", link.namespace)
            _ip("link", "add", link.cable, "type", "veth", "peer", "name", "eth0", "netns", link.namespace)
            _ip("link", "set", link.cable, "master", NAME)
            _ip("-n", link.namespace, "address", "add", f"{link.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", link.namespace, "link", "set", device, "up")
            link.up()
        yield f"{SUBNET}.1", links
    finally:
        _remove(links)


def _remove(links: list[Link]) -> None:
    for link in links:
        subprocess.run(["ip", "netns", "del", link.namespace], capture_output=True)
        subprocess.run(["ip", "link", "del", link.cable], capture_output=True)
    subprocess.run(["ip", "link", "del", NAME], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
