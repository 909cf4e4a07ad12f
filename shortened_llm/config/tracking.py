"""The section `tracking`."""

from pydantic import Field, field_validator

from shortened_llm.config.base import Url
from shortened_llm.fields import Section


class WandbConfig(Section):
    """Weights & Biases; needs the package wandb."""

    project: str = Field(min_length=1)
    """Project of the runs. The key comes from WANDB_API_KEY in the environment of the driver's node, never from a
    configuration; WANDB_MODE=offline needs none."""
    entity: str | None = None
    """User or team that the project belongs to; the key's own unless given."""


class MlflowConfig(Section):
    """MLflow; needs the package mlflow."""

    tracking_uri: Url
    """Server or database of the runs, such as https://mlflow.example.org or sqlite:////absolute/path.db. Credentials
    come from MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment."""
    experiment: str | None = Field(None, min_length=1)
    """Experiment of the runs in MLflow; the name of this experiment unless given."""

    @field_validator("tracking_uri")
    @classmethod
    def _no_directory(cls, uri: str) -> str:
        if "://" not in uri and uri != "databricks":
            raise ValueError("give the URL of a server or database; MLflow keeps no more runs in plain directories")
        return uri


class TrackingConfig(Section):
    """Experiment trackers that trials are logged to, beside TensorBoard. Nothing here changes a number in the
    report."""

    wandb: WandbConfig | None = None
    """Weights & Biases, such as {project: shortened}."""
    mlflow: MlflowConfig | None = None
    """MLflow, such as {tracking_uri: https://mlflow.example.org}."""
