"""Keys have no place in a URL, which is stored with results and shown in messages."""

import re

_USER = re.compile(r"(?P<before>\w[\w+.-]*://)(?P<secret>[^/\s'\"]*)@")
_KEYS = (
    "access_key", "access_key_id", "secret", "secret_key", "secret_access_key", "session_token", "token", "password",
    "key", "api_key", "apikey", "auth", "sig", "signature", "credential", "awsaccesskeyid", "x-amz-credential",
    "x-amz-signature", "x-amz-security-token", "x-goog-credential", "x-goog-signature", "account_key", "sas_token",
    "connection_string", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
)  # fmt: skip
_PARAMETER = re.compile(
    rf"(?P<before>[?&;#](?:{'|'.join(map(re.escape, _KEYS))})=)(?P<secret>[^&;\s'\"]*)", re.IGNORECASE
)
CREDENTIALS_REFUSED = (
    "a URL must not hold credentials; give it without them, as in s3://bucket/prefix, and set them in the environment "
    "or give the node a role"
)


def holds_credentials(url: str) -> bool:
    """Whether a URL has a user in front of its host, or a parameter with a key."""
    return bool(_USER.search(url) or _PARAMETER.search(url))


def hidden(text: str) -> str:
    """`text` with *** for the credentials in any URL of it."""
    return _PARAMETER.sub(r"\g<before>***", _USER.sub(r"\g<before>***@", text))
