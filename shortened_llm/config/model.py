"""The sections `storage` and `model`."""

from typing import Literal

from pydantic import Field

from shortened_llm.config.base import Dtype, Url
from shortened_llm.fields import Section


class StorageConfig(Section):
    """Where every result goes."""

    url: Url = "./results"
    """A directory or an fsspec URL such as s3://bucket/prefix. Credentials come from the environment or the node's
    role; AWS_ENDPOINT_URL names another S3 server."""
    outage_seconds: float = Field(300, ge=10, le=86400)
    """How long a job, all its processes together, waits for a storage that does not answer. After that it stops with
    exit code 1; the same command goes on later."""


class ModelConfig(Section):
    """The dense model."""

    path: Url
    """Hub id, directory, fsspec URL of a directory, or GGUF file."""
    revision: str | None = None
    """Hub branch, tag or commit; resolved to a commit when staged."""
    dtype: Dtype = "bfloat16"
    """Compute type of retraining and evaluation. Master weights of retraining are float32."""
    export_dtype: Dtype | None = None
    """Type of the weights that are written; unless given, the compute type, whatever that of the model's files."""
    trust_remote_code: Literal[False] = False
    """Models that bring Python code of their own are not loaded."""
    license: str | None = None
    """Licence of the model, such as apache-2.0, to be stated with every model made from it; read from its model card
    unless given."""

    @property
    def exported_dtype(self) -> Dtype:
        """Type of the weights that are written."""
        return self.export_dtype or self.dtype
