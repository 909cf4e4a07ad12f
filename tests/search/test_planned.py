"""The experiment as it is planned."""

from pathlib import Path

from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.data.sources import text_roles
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.records import EvalScores, Experiment, ModelRef, Size, TrainingData
from shortened_llm.search.baseline import DenseScores
from shortened_llm.search.planned import planned_experiment
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.stored.provenance import provenance
from shortened_llm.search.units import report_units
from shortened_llm.storage.store import Store


def planned(config: ExperimentConfig, dense: ModelRef) -> Experiment:
    nothing = TrainingData(corpus=None, instructions=None, validation=None)
    scores = DenseScores(selection=EvalScores(), report=EvalScores())
    size = Size(blocks=8, parameters=1, nonzero_parameters=1, num_bytes=4)
    space = SearchSpace(
        dense=dense, data=nothing, retraining=config.retraining, selection=(), dtype="float32", export_dtype="float32"
    )
    return planned_experiment(config, text_roles(config), space, scores, (), provenance(config), size)


def test_unseen_units_are_those_of_the_scores_on_texts_that_nothing_was_trained_on(
    tiny_values: dict, tiny_model: ModelRef, local_store: Store, tmp_path: Path
) -> None:
    apart = tmp_path / "apart.txt"
    apart.write_text("A story of its own. " * 200)
    texts = [tiny_values["retraining"]["data"]["path"], str(apart)]
    tiny_values["evaluation"]["report"] = {"perplexity": [{"path": t, "bos": "none", "max_tokens": 512} for t in texts]}
    config = parse_config(tiny_values)
    units = report_units(config, text_roles(config))
    loaded = LoadedModels(config.model.dtype, "cpu")
    of_trained, of_apart = evaluate(tiny_model, units, local_store, loaded, batch_size=4).perplexity
    assert of_trained.unit != of_apart.unit
    assert planned(config, tiny_model).unseen_units == (of_apart.unit,)
