"""Shared fixtures: a tiny trained model, random models of several families, storage of two kinds."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import logging
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from jobs.assets import DEFAULT_DIRECTORY, DIRECTORY_VARIABLE, stage_assets
from shortened_llm.config import ExperimentConfig, RetrainingConfig, parse_config
from shortened_llm.data.packing import PackingJob, pack_tokens
from shortened_llm.data.sources import text_roles
from shortened_llm.logs import LOGGER
from shortened_llm.models.directory import load_config, load_tokenizer, model_directory
from shortened_llm.records import BlocksTransform, ModelRef, TokenMixture
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.recipe import chains
from shortened_llm.storage.payload import describe_files
from shortened_llm.storage.store import Store

if TYPE_CHECKING:
    from tests.s3_server import S3Server


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the package logs from INFO on."""
    monkeypatch.setattr(LOGGER, "propagate", True)
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    return caplog


@pytest.fixture(scope="session")
def tiny_assets() -> Path:
    """Directory of the tiny trained model and its texts; staged once per machine."""
    directory = Path(os.environ.get(DIRECTORY_VARIABLE, DEFAULT_DIRECTORY)).expanduser()
    stage_assets(["tiny"], directory)
    return directory / "tiny"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """A real S3 server on the loopback interface; its credentials are in the environment while it runs."""
    from tests.s3_server import start_s3_server  # whose client is not installed wherever tests run

    with start_s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, on a local directory and on S3."""
    if request.param == "local":
        return Store.at(str(tmp_path / "results"))
    server: S3Server = request.getfixturevalue("s3_server")
    return Store.at(f"s3://{server.bucket}/{secrets.token_hex(4)}")


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path / "results"))


@pytest.fixture(scope="session")
def token_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of every process that uses Ray: token authentication with a token of this session."""
    token = tmp_path_factory.mktemp("ray-token") / "token"
    token.write_text("0123456789abcdef" * 4)
    # What importing `jobs` sets here for a Ray of its own is not for clusters of several nodes.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    return {
        **inherited,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of one, as the training loop expects."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def reference_to(directory: Path) -> ModelRef:
    """A model directory as stages hand it on."""
    return ModelRef(
        url=str(directory),
        fingerprint=secrets.token_hex(8),
        files=describe_files(directory),
        num_blocks=load_config(directory).num_hidden_layers,
    )


def keeping(kept: Sequence[int]) -> tuple[BlocksTransform, ...]:
    """The transforms of a view with these blocks alone."""
    return (BlocksTransform(kept=tuple(kept)),)


SaveModel = Callable[[PreTrainedConfig], tuple[PreTrainedModel, ModelRef]]


@pytest.fixture
def save_random_model(tmp_path: Path) -> SaveModel:
    """Build a model with random weights in float32, save it, and return it with a reference to its files."""

    def save(config: PreTrainedConfig) -> tuple[PreTrainedModel, ModelRef]:
        torch.manual_seed(0)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).float().eval()
        directory = tmp_path / f"model-{secrets.token_hex(4)}"
        model.save_pretrained(directory)
        return model, reference_to(directory)

    return save


@pytest.fixture
def tiny_values(tiny_assets: Path, tmp_path: Path) -> dict:
    """Values of a valid configuration on the tiny model, for a test to change."""
    stories, news = str(tiny_assets / "texts/stories.jsonl"), str(tiny_assets / "texts/news.jsonl")
    return {
        "experiment": "test",
        "storage": {"url": str(tmp_path / "results")},
        "model": {"path": str(tiny_assets / "model"), "dtype": "float32"},
        "calibration": {"path": stories, "num_sequences": 4, "sequence_length": 64},
        "pruning": {"criteria": ["ppl", "magnitude"], "protect_first": 1, "protect_last": 1},
        "search": {"ratios": [0.25]},
        "retraining": {
            "data": {"path": stories},
            "tokens": 8192,
            "sequence_length": 128,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "cpt": {"learning_rate": 3e-4, "warmup_ratio": 0.1},
        },
        "evaluation": {
            "selection": {"perplexity": [{"path": stories, "bos": "none", "max_tokens": 2048}]},
            "report": {"perplexity": [{"path": news, "bos": "none", "max_tokens": 2048}]},
        },
        "resources": {"workers": 2, "cpus_per_worker": 0.5},
    }


@pytest.fixture
def tiny_config(tiny_values: dict) -> ExperimentConfig:
    return parse_config(tiny_values)


@pytest.fixture
def tiny_model(tiny_assets: Path) -> ModelRef:
    return reference_to(tiny_assets / "model")


@pytest.fixture
def corpus(tiny_config: ExperimentConfig, tiny_model: ModelRef, local_store: Store) -> TokenMixture:
    """64 sequences of 128 tokens."""
    (documents,) = text_roles(tiny_config).train
    packing = PackingJob(source=documents, tokenizer_identity="tiny", vocab_size=260, sequence_length=128, at_most=64)
    tokenizer = load_tokenizer(model_directory(tiny_model))
    return TokenMixture(parts=(pack_tokens(packing, tokenizer, local_store),))


MakeJob = Callable[..., RetrainingJob]


@pytest.fixture
def make_job(tiny_config: ExperimentConfig, tiny_model: ModelRef, corpus: TokenMixture) -> MakeJob:
    """Build the first run of a method on a view of five of the eight blocks; options are those of the section
    `retraining`."""

    def make(method: str = "cpt", dtype: str = "float32", **options: object) -> RetrainingJob:
        values = tiny_config.retraining.model_dump(mode="json") | {"methods": [method]}
        config = RetrainingConfig.model_validate(values | options)
        (budget,) = config.budgets
        recipe = next(chains(config, method, budget, 0))[0]  # type: ignore[arg-type]
        return RetrainingJob(
            model=tiny_model.view(keeping((0, 1, 4, 6, 7))),
            teacher=tiny_model if recipe.distill else None,
            tokens=corpus,
            validation=corpus,
            recipe=recipe,
            dtype=dtype,
            export_dtype=dtype,
            placement=config,
        )

    return make


@pytest.fixture
def job(make_job: MakeJob) -> RetrainingJob:
    """Eight steps of continued pretraining."""
    return make_job()
