"""One logger for the whole package, set up once by an entry point."""

import logging
import os
import sys
import time
import warnings

LOGGER = logging.getLogger("shortened_llm")

NOISY_LIBRARIES = (
    "absl", "accelerate", "datasets", "filelock", "fsspec", "huggingface_hub", "lm_eval", "matplotlib", "numexpr",
    "ray", "ray.data", "ray.train", "ray.tune", "torch", "transformers", "urllib3",
)  # fmt: skip


def quiet_libraries() -> None:
    """Silence libraries: their progress bars and warnings would bury ours, and their errors reach us as exceptions.

    Best called before they are imported, since some read their environment then. What the user has set wins.
    """
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "LMEVAL_LOG_LEVEL": "ERROR",
        "TQDM_DISABLE": "1",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def setup_logging(level: int = logging.INFO) -> None:
    """Send the package's log lines to stderr as `HH:MM:SS message`; stdout stays for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level)
    LOGGER.propagate = False


class StepLog:
    """Logs a count of equal steps with the time they may still take, every few seconds."""

    def __init__(self, subject: str, every_seconds: float = 5.0) -> None:
        self._subject, self._every = subject, every_seconds
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= self._every or done == total:
            self._last = now
            left = (now - self._started) / done * (total - done)
            LOGGER.info("%s: %d/%d, %.0f s left", self._subject, done, total, left)
