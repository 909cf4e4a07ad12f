"""Places that the user names and that cannot be asked."""

import pytest

from shortened_llm.errors import BadInputError, UnreachableError
from shortened_llm.storage.urls import reached


def test_its_field_is_told() -> None:
    with (
        pytest.raises(UnreachableError, match=r"^model\.path: 's3://b' cannot be read \(OSError: no keys\); check"),
        reached("model.path: 's3://b'"),
    ):
        raise OSError("no keys")


def test_what_is_told_already_stays() -> None:
    with pytest.raises(BadInputError, match=r"^as it was$"), reached("model.path: 's3://b'"):
        raise BadInputError("as it was")
