"""The file systems behind URLs: fsspec's for us, pyarrow's for Ray. Credentials come from the environment or the node's
role: keys that are passed to a client would end in Tune's state."""

import functools
import math
from typing import Any

import fsspec
import pyarrow.fs

from shortened_llm.storage.retry import is_patient, is_transient, outage_seconds

S3_URLS = ("s3://", "s3a://")
# s3fs waits 0.1 s x 1.7^n after its n-th failure, 10 s in all, and before each of these botocore has its own attempts,
# with random waits of up to 1 and 2 s.
S3FS_ATTEMPTS = 8
BOTOCORE_ATTEMPTS = 3
# The AWS client of pyarrow waits a random time of up to 2^n s, 20 s at most: 10 s in the mean after the first five.
PYARROW_FIRST_ATTEMPTS, PYARROW_SECONDS_BETWEEN = 5, 10
HASTY_TIMEOUT_SECONDS = 3


def fsspec_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a remote `url`, and the path in it. Inside `patience` it tries each request once.

    Raises:
        ImportError, ValueError: the protocol is unknown, or its package is not installed.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    if not url.startswith(S3_URLS):
        return fsspec.core.url_to_fs(url, **options)
    _prepare_s3fs()
    if is_patient():
        config: dict[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": BOTOCORE_ATTEMPTS}}
    else:
        timeouts = {"connect_timeout": HASTY_TIMEOUT_SECONDS, "read_timeout": HASTY_TIMEOUT_SECONDS}
        config = {"retries": {"mode": "standard", "total_max_attempts": 1}, **timeouts}
    fs, path = fsspec.core.url_to_fs(url, config_kwargs=config, **options)
    fs.retries = S3FS_ATTEMPTS if is_patient() else 1
    fs.session = fs.session or _s3_session()
    return fs, path


def check_bucket(url: str) -> None:
    """Raises `FileNotFoundError` where the S3 bucket of `url` is not there: some servers make one when they are written
    to, of whatever name."""
    if url.startswith(S3_URLS):
        fs, path = fsspec_filesystem(url)
        try:
            fs.call_s3("head_bucket", Bucket=path.split("/", 1)[0])
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no bucket {path.split('/', 1)[0]!r}, and none is created") from None


@functools.cache
def _prepare_s3fs() -> None:
    """By itself s3fs tries again after `SlowDown` and broken reads, but neither after a refused connection nor a 500.
    For every client of the process: `datasets` makes its own."""
    import s3fs

    s3fs.S3FileSystem.retries = S3FS_ATTEMPTS
    s3fs.core.set_custom_error_handler(is_transient)


def _s3_session() -> Any:
    """A session whose writes do not ask the server first whether to go on: no time-out covers the answer to that, so
    that a server that hangs would be waited for for ever."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    session.unregister("before-call.s3", add_expect_header)
    return session


class LastingS3FileSystem(pyarrow.fs.S3FileSystem):
    """An S3 file system that outlasts an outage, also in other processes: pyarrow forgets the retry strategy when it
    pickles."""

    def __init__(self, max_attempts: int, **options: Any) -> None:
        self._max_attempts = max_attempts
        strategy = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=max_attempts)
        super().__init__(**options, retry_strategy=strategy)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(LastingS3FileSystem, self._max_attempts, **_options(self)), ()


def _options(fs: pyarrow.fs.S3FileSystem) -> dict[str, Any]:
    """What makes the same file system again, as pyarrow pickles it: without keys that came from the environment."""
    (options,) = pyarrow.fs.S3FileSystem.__reduce__(fs)[1]
    return dict(options)


def ray_storage(url: str) -> dict[str, Any]:
    """`storage_path` and `storage_filesystem` of a Ray `RunConfig` that keeps its files at `url`.

    Other URLs than S3's are left to pyarrow, whose client of Google's storage waits up to 15 minutes.
    """
    if not url.startswith("s3://"):
        return {"storage_path": url}
    plain, path = pyarrow.fs.FileSystem.from_uri(url)  # finds region and AWS_ENDPOINT_URL
    max_attempts = PYARROW_FIRST_ATTEMPTS + math.ceil(outage_seconds() / PYARROW_SECONDS_BETWEEN)
    return {"storage_path": path, "storage_filesystem": LastingS3FileSystem(max_attempts, **_options(plain))}
