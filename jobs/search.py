"""Search over pruning plans: score, prune, retrain, evaluate, report."""

from collections.abc import Sequence

from jobs.cli import check_with_placement, make_parser, open_store, parse_command, run
from shortened_llm.search.affordable import check_forecast
from shortened_llm.search.forecast import forecast_search
from shortened_llm.search.outline import Outline, outline_search
from shortened_llm.search.preflight import Facts, check_config
from shortened_llm.search.run import run_search
from shortened_llm.search.summary import describe_search


def main(arguments: Sequence[str]) -> None:
    """The last line on stdout is the path or URL of the report."""
    config, flags = parse_command(
        make_parser("search", "Search over pruning plans."), arguments, ["search", "evaluation"]
    )
    store = open_store(config)

    def check() -> Facts | Outline:
        outline = outline_search(config, store) if flags.dry_run else None
        return outline or check_config(config, store, searches=True)

    in_rounds = max(config.search.rounds) > 1
    facts, capacity = check_with_placement(
        check, config.resources, dry_run=flags.dry_run, scores_within_trials=in_rounds
    )
    forecast = forecast_search(config, facts, store, capacity)
    check_forecast(config, forecast)
    print(describe_search(config, facts, store, forecast), flush=True)
    if isinstance(facts, Facts) and not flags.dry_run:
        print(run_search(config, facts, store, capacity))


if __name__ == "__main__":
    run(main)
