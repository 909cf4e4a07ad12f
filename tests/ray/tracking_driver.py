"""A Tune run of one trial that logs to trackers: `python -m tests.ray.tracking_driver TRACKING.json RESULTS`."""

import sys
from pathlib import Path

import ray.tune

from shortened_llm.config import TrackingConfig
from shortened_llm.search.cluster.trackers import check_node, check_tracking, tracker_callbacks


def trial(config: dict) -> None:
    for step in range(1, 4):
        ray.tune.report({"loss": 1.0 / step, "tokens": 100 * step})


def main() -> None:
    tracking = TrackingConfig.model_validate_json(Path(sys.argv[1]).read_text())
    check_tracking(tracking)
    ray.init(
        address="local", _node_ip_address="127.0.0.1", num_cpus=1, include_dashboard=False, log_to_driver=False,
        object_store_memory=128 * 2**20,
    )  # fmt: skip
    check_node(tracking)
    ray.tune.Tuner(
        trial,
        param_space={"trial": ray.tune.grid_search([{"fingerprint": "f1", "learning_rate": 1e-3}])},
        tune_config=ray.tune.TuneConfig(trial_name_creator=lambda trial: "ppl 25% cpt"),
        run_config=ray.tune.RunConfig(
            name="run", storage_path=sys.argv[2], callbacks=tracker_callbacks(tracking, "my-search"), verbose=0
        ),
    ).fit()


if __name__ == "__main__":
    main()
