"""A user's own measure: called with the model, refused where it cannot be."""

from pathlib import Path

import pytest

from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.evaluation.own_metric import load_metric, measure_metric, metric_identity
from shortened_llm.evaluation.subject import LoadedModels, Subject
from shortened_llm.evaluation.units import MetricUnit
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef
from shortened_llm.storage.store import Store
from tests.conftest import keeping

SOURCE = """
import numpy
import torch

__version__ = "2.1"

def blocks_and_eos(model, tokenizer):
    return model.config.num_hidden_layers + tokenizer.eos_token_id / 1000

def as_array(model, tokenizer, power=1):
    return numpy.float32(0.5)

def undefined(model, tokenizer):
    return torch.tensor(float("nan"))

def words(model, tokenizer):
    return "good"

def three(model, tokenizer, text):
    return 1.0

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of its own for each test: Python keeps what it has imported."""
    name = "my_metrics_" + str(abs(hash(request.node.nodeid)))
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_metric_is_called_with_model_and_tokenizer(module: str, tiny_model: ModelRef) -> None:
    tokenizer = load_tokenizer(model_directory(tiny_model))
    score = measure_metric(
        load_model(tiny_model.view(keeping((0, 7))), "float32"), tokenizer, f"{module}:blocks_and_eos"
    )
    assert score.value == 2 + tokenizer.eos_token_id / 1000
    assert score.name == f"{module}:blocks_and_eos"
    assert "version 2.1" in score.protocol
    assert measure_metric(load_model(tiny_model, "float32"), tokenizer, f"{module}:as_array").value == 0.5


def test_its_passes_are_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: ModelRef, local_store: Store
) -> None:
    source = "import torch\ndef twice(model, tokenizer):\n" + "    model(input_ids=torch.ones(1, 4).long())\n" * 2
    (tmp_path / "passing_metric.py").write_text(f"{source}    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    passes: list[None] = []
    loaded = LoadedModels("float32", "cpu", lambda: passes.append(None))
    subject = Subject(ref=tiny_model, loaded=loaded, store=local_store, batch_size=1)
    assert MetricUnit(path="passing_metric:twice").measure(subject).value == 1.0
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "no_such_module.*cannot be imported"),
        ("{module}:f", "no function 'f'.*blocks_and_eos"),
        ("{module}:constant", "no function 'constant'"),
        ("{module}:three", "two arguments.*text"),
    ],
)
def test_what_cannot_be_called_is_refused(path: str, message: str, module: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_metric(path.format(module=module))


def test_a_module_that_breaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_metrics.py").write_text("def f(model, tokenizer)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInputError, match=r"broken_metrics.*SyntaxError"):
        load_metric("broken_metrics:f")


def test_results_must_be_finite_numbers(module: str, tiny_model: ModelRef) -> None:
    model, tokenizer = load_model(tiny_model, "float32"), load_tokenizer(model_directory(tiny_model))
    with pytest.raises(NonFiniteLossError, match=f"{module}:undefined is nan"):
        measure_metric(model, tokenizer, f"{module}:undefined")
    with pytest.raises(BadInputError, match=f"{module}:words.*'good'"):
        measure_metric(model, tokenizer, f"{module}:words")


def test_the_identity_follows_the_source(module: str, tmp_path: Path) -> None:
    before = metric_identity(f"{module}:as_array")
    assert metric_identity(f"{module}:as_array") == before
    (tmp_path / f"{module}.py").write_text(SOURCE.replace("0.5", "0.6"))
    assert metric_identity(f"{module}:as_array") != before
    with pytest.raises(BadInputError, match="no Python source"):
        metric_identity("math:pow")
