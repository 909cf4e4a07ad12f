"""Task files of the tests, and the data they name."""

import json
from pathlib import Path

import yaml

# Answers of several lengths, so that the metrics differ.
ENDINGS = [
    {"text": "Once upon a", "choices": [" time there was a", " zq", " day, a", " tree"], "label": 0},
    {"text": "The cat was very", "choices": [" happy", " xv", " big and it was"], "label": 0},
    {"text": "Lily went to the", "choices": [" q", " park with her mom", " shop"], "label": 2},
    {"text": "They saw a big", "choices": [" dog", " ö", " red ball in the park"], "label": 1},
    {"text": "She said,", "choices": [' "Thank you, mom!"', " No", ' "Yes"'], "label": 2},
]
CONTEXTS = [
    {"choices": ["The dog is", "Xq zvw"], "ending": "happy and it ran to the park.", "label": 0},
    {"choices": ["Zz 17 k", "Tom and Lily are"], "ending": "friends.", "label": 1},
    {"choices": ["It was a sunny day", "It"], "ending": "rained.", "label": 1},
]
WORDS = [{"text": "Once upon a", "word": "time"}, {"text": "One day, a little", "word": "cat"}] * 2


def accuracy(text: str, rows: str, **values: object) -> dict:
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": rows}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in values["by"]],
        "metadata": {"version": 1.0},
        **{key: value for key, value in values.items() if key != "by"},
    }


def write_tasks(directory: Path) -> None:
    """Write `<name>_local.yaml` of each task and group."""
    paths = {}
    for name, rows in {"endings": ENDINGS, "more": ENDINGS[:3] * 4, "contexts": CONTEXTS, "words": WORDS}.items():
        paths[name] = str(directory / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = ["acc", "acc_norm"]
    endings = accuracy("{{text}}", paths["endings"], by=both, target_delimiter="")
    shots = {"fewshot_split": "validation", "num_fewshot": 2}
    tasks = {
        "endings": endings | {"metadata": {"version": 2.0}},
        "shots": endings | {"dataset_kwargs": {"data_files": {"validation": paths["more"]}}} | shots,
        # The context ends in a space, which is scored with the answer.
        "spaces": accuracy("{{text}} ", paths["endings"], by=["acc"], target_delimiter=""),
        "contexts": accuracy("{{label}}", paths["contexts"], by=["acc"], doc_to_target="ending"),
        "words": {
            **accuracy("{{text}}", paths["words"], by=["exact_match"]),
            "output_type": "generate_until",
            "doc_to_choice": None,
            "doc_to_target": "word",
            "generation_kwargs": {"until": ["."], "max_new_tokens": 20, "do_sample": True, "temperature": 0.7},
            "filter_list": [
                {"name": "letters", "filter": [{"function": "regex", "regex_pattern": "([a-z]+)"},
                                               {"function": "take_first"}]},
                {"name": "whole", "filter": [{"function": "take_first"}]},
            ],
        },
        "fixed": endings | {"num_fewshot": 0},
        "no_such_data": accuracy("{{text}}", str(directory / "none.jsonl"), by=["acc"]),
        "no_such_split": endings | {"validation_split": "train"},
        "tagged": endings | {"tag": "some_tag"},
    }  # fmt: skip
    for name, values in tasks.items():
        (directory / f"{name}_local.yaml").write_text(yaml.safe_dump({"task": f"{name}_local", **values}))
    members = ["shots_local", "endings_local"]
    groups = {
        "group": [{"metric": "acc_norm"}],
        "unweighted": [{"metric": "acc", "weight_by_size": False}],
        "scoreless": None,
    }
    for name, metrics in groups.items():
        group = {
            "group": f"{name}_local",
            "task": members,
            "aggregate_metric_list": metrics,
            "metadata": {"version": 3},
        }
        (directory / f"{name}_local.yaml").write_text(yaml.safe_dump(group))
