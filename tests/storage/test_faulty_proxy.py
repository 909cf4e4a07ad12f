"""The proxy that other tests rely on does what it says."""

import secrets
from collections.abc import Callable

import pytest
import s3fs
from botocore.exceptions import EndpointConnectionError, HTTPClientError

from tests.faulty_proxy import FaultyProxy, Request
from tests.s3_server import S3Server


@pytest.fixture
def connect(proxy: FaultyProxy) -> Callable[[], s3fs.S3FileSystem]:
    """A client that gives up at the first fault."""

    def make() -> s3fs.S3FileSystem:
        fs = s3fs.S3FileSystem(
            endpoint_url=proxy.environment["AWS_ENDPOINT_URL"],
            skip_instance_cache=True,
            config_kwargs={"retries": {"total_max_attempts": 1}, "read_timeout": 1},
        )
        fs.retries = 1
        return fs

    return make


Connect = Callable[[], s3fs.S3FileSystem]


@pytest.mark.parametrize("size", [0, 10, 2**20])
def test_passes_on(connect: Connect, s3_server: S3Server, size: int) -> None:
    path, content = f"{s3_server.bucket}/{secrets.token_hex(4)}", secrets.token_bytes(size)
    fs = connect()
    fs.pipe_file(path, content)
    assert fs.cat_file(path) == content


def test_down_and_up(connect: Connect, proxy: FaultyProxy, s3_server: S3Server) -> None:
    path = f"{s3_server.bucket}/{secrets.token_hex(4)}"
    fs = connect()
    for _ in range(3):
        proxy.down()
        with pytest.raises(EndpointConnectionError):
            fs.pipe_file(path, b"lost")
        proxy.up()
        fs.pipe_file(path, b"kept")
    assert fs.cat_file(path) == b"kept"


def test_answers_every_third_for_a_while(connect: Connect, proxy: FaultyProxy, s3_server: S3Server) -> None:
    path = f"{s3_server.bucket}/{secrets.token_hex(4)}"
    fs = connect()
    proxy.answer(503, every=3, times=2, methods=("PUT",))
    outcomes = []
    for _ in range(9):
        try:
            fs.pipe_file(path, b"x" * 100_000)
            outcomes.append("")
        except OSError as error:
            outcomes.append(error.__cause__.response["Error"]["Code"])
    assert outcomes == ["", "", "SlowDown", "", "", "SlowDown", "", "", ""]
    assert proxy.struck == 2
    assert proxy.requests.count(Request(method="PUT", path=f"/{path}")) == 9


def test_a_lost_answer_was_carried_out(connect: Connect, proxy: FaultyProxy, s3_server: S3Server) -> None:
    path = f"{s3_server.bucket}/{secrets.token_hex(4)}"
    fs = connect()
    proxy.cut(after=0, methods=("PUT",))
    with pytest.raises((EndpointConnectionError, HTTPClientError)):
        fs.pipe_file(path, b"there")
    proxy.calm()
    assert fs.cat_file(path) == b"there"


def test_an_answer_is_cut_short(connect: Connect, proxy: FaultyProxy, s3_server: S3Server) -> None:
    path = f"{s3_server.bucket}/{secrets.token_hex(4)}"
    fs = connect()
    fs.pipe_file(path, b"x" * 200_000)
    proxy.cut(after=20_000, methods=("GET",))
    with pytest.raises(Exception, match=r"payload|reset|closed"):
        fs.cat_file(path)


def test_a_delay_is_a_time_out(connect: Connect, proxy: FaultyProxy, s3_server: S3Server) -> None:
    fs = connect()
    proxy.delay(30)
    with pytest.raises(HTTPClientError, match=r"(?i)timeout"):
        fs.cat_file(f"{s3_server.bucket}/nothing")
