"""A faulty proxy in front of the S3 server, and clients that go through it."""

import secrets
from collections.abc import Iterator

import pytest
import s3fs

from shortened_llm.storage.store import Store
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.s3_server import S3Server


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The storage of this process goes through it."""
    with faulty_proxy(s3_server) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def faulty_store(proxy: FaultyProxy, s3_server: S3Server) -> Store:
    return Store.at(f"s3://{s3_server.bucket}/{secrets.token_hex(4)}")
