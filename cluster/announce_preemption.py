"""Tell Ray that this spot machine is about to end, as soon as its cloud says so.

    python announce_preemption.py aws|gcp

Ray's launchers on virtual machines do not do it; on Kubernetes `ray start` does, when its pod is asked to end. Training
then saves a checkpoint at once and goes on elsewhere, and the restart does not count as a failure.
"""

import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

POLL_SECONDS = 5.0
# How long a machine lives after its notice (seconds), less what noticing it takes.
SECONDS_LEFT = {"aws": 110, "gcp": 25}
METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}


def is_ending(cloud: str, address: str) -> bool:
    """Whether the metadata service at `address` announces the end of this machine."""
    if cloud == "gcp":
        url = f"{address}/computeMetadata/v1/instance/preempted"
        return _ask(url, {"Metadata-Flavor": "Google"}) == "TRUE"
    session = _ask(f"{address}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    notice = _ask(f"{address}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": session or ""})
    return notice is not None


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The answer's text, or None where the service has nothing to say, or does not answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code != 404:  # 404: no notice yet
            logging.warning("%s: %s", url, error)
    except OSError as error:
        logging.warning("%s: %s", url, error)
    return None


def announce(seconds_left: int) -> None:
    """Have Ray drain this node."""
    subprocess.run(
        [
            "ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "the cloud takes this spot machine back",
            "--deadline-remaining-seconds", str(seconds_left),
        ],
        check=True,
    )  # fmt: skip


def main() -> None:
    """Watch until the notice comes, announce it, and end."""
    cloud = sys.argv[1]
    address = os.environ.get("METADATA_ADDRESS", METADATA[cloud])
    while not is_ending(cloud, address):
        time.sleep(POLL_SECONDS)
    announce(SECONDS_LEFT[cloud])


if __name__ == "__main__":
    main()
