"""Block orders and dense perplexities of the paper's models against the published ones: `make verify-published`.

Each model is fetched from the hub, its blocks are scored on BookCorpus and its perplexity is measured, as `jobs.score`
and `jobs.evaluate` do. A place in an order drifts where another block stands there and the scores of the two differ by
more than two standard errors; a perplexity drifts beyond `PERPLEXITY_BOUND`. The paper's own ten calibration sequences
are not published: `--calibration` takes a file of them, or of longer passages.

Needs the network, 75 GB of disk for all models, and a GPU unless hours do not matter; needs no Ray.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from jobs.cli import FAILED, Parser, open_store, run
from jobs.score import score_here
from shortened_llm.config import ExperimentConfig, ModelConfig, parse_config
from shortened_llm.criteria import CRITERIA
from shortened_llm.criteria.criterion import NLL, standard_errors
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.models.stage import inspect_model, stage_model
from shortened_llm.records import UnitScores
from shortened_llm.scoring.job import ScoringJob, scoring_jobs
from shortened_llm.scoring.measure import measured
from shortened_llm.search.preflight import Facts, check_config
from shortened_llm.search.units import selection_units
from shortened_llm.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was published of one model."""

    path: str
    """Hub id, or a directory."""
    orders: Mapping[str, tuple[int, ...]]
    """For each criterion the unprotected blocks, least important first, as far as they are known."""
    perplexities: tuple[tuple[str | Mapping[str, object], float], ...]
    """The dense model's, each behind its text and protocol as a configuration gives them."""


WIKITEXT2, PTB = "wikitext2@128/bos-first", "ptb@128/bos-first"
# Shortened LLaMA, arXiv 2402.02834: the first six places of its orders by PPL.
PUBLISHED = {
    "llama-7b": Published(
        path="huggyllama/llama-7b",
        orders={"ppl": (24, 26, 25, 10, 27, 13)},
        perplexities=((WIKITEXT2, 12.62), (PTB, 22.13)),
    ),
    "vicuna-7b": Published(
        path="lmsys/vicuna-7b-v1.3",
        orders={"ppl": (25, 27, 10, 24, 11, 20)},
        perplexities=((WIKITEXT2, 17.13), (PTB, 63.18)),
    ),
    "llama-2-7b": Published(
        path="meta-llama/Llama-2-7b-hf",
        orders={"ppl": (11, 8, 24, 21, 12, 7)},
        perplexities=((WIKITEXT2, 12.19), (PTB, 48.34)),
    ),
    "llama-3-8b": Published(
        path="meta-llama/Meta-Llama-3-8B",
        orders={"ppl": (8, 23, 9, 11, 10, 25)},
        perplexities=((WIKITEXT2, 14.14), (PTB, 27.96)),
    ),
}
# The hub's own copy of a data set that only a script describes.
BOOK_CORPUS = {"path": "bookcorpus/bookcorpus", "revision": "refs/convert/parquet"}

LEAST_STANDARD_ERRORS = 2.0
PERPLEXITY_BOUND = 0.01
"""Two published decimals leave 0.04 % open; another protocol moves SmolLM2-135M by 4 % (bos-each for bos-first, 2,000
tokens). What float16 there and bfloat16 here add is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A published figure beside ours: the block at one place of an order, or a perplexity of the dense model."""

    figure: str
    published: float
    ours: float
    difference: float
    """Relative: our score of the published block over that of ours, or our perplexity over theirs, less 1."""
    standard_error: float | None = None
    """Standard error of the difference over calibration sequences; None where there is none."""
    allowed: float
    """The difference up to which ours may be another figure."""

    @property
    def verdict(self) -> str:
        if self.published == self.ours:
            return "equal"
        return "within" if abs(self.difference) <= self.allowed else DRIFT


DRIFT = "DRIFT"


def configuration(model: Published, calibration: Mapping[str, object], storage: str) -> ExperimentConfig:
    """What `jobs.score` and `jobs.evaluate` would be given; the defaults are the paper's: 10 x 128 tokens, seed 1234,
    4 and 2 protected blocks."""
    return parse_config(
        {
            "experiment": "published",
            "storage": {"url": storage},
            "model": {"path": model.path},
            "calibration": calibration,
            "pruning": {"criteria": list(model.orders)},
            "evaluation": {"selection": {"perplexity": [source for source, _ in model.perplexities]}},
        }
    )


def compare_order(scores: UnitScores, published: Sequence[int], job: ScoringJob, store: Store) -> Iterator[Compared]:
    """Each published place beside that of our order; protected blocks are in neither."""
    ours = [block for block in scores.order if block not in scores.protected]
    # Of the paper's criteria only PPL has a value for each sequence.
    nll = measured(scores.criterion, job, store, num_shards=1) if CRITERIA[scores.criterion].statistic == NLL else None
    for place, (theirs, own) in enumerate(zip(published, ours[: len(published)], strict=True), start=1):
        # In nats per prediction, which is the relative error of a perplexity.
        error = None if nll is None else standard_errors(nll[:, 1 + theirs] - nll[:, 1 + own])
        yield Compared(
            figure=f"{scores.criterion}, place {place}",
            published=theirs,
            ours=own,
            difference=scores.scores[theirs] / scores.scores[own] - 1,
            standard_error=None if error is None else float(error),
            allowed=0.0 if error is None else LEAST_STANDARD_ERRORS * float(error),
        )


def compare(model: Published, config: ExperimentConfig, facts: Facts) -> list[Compared]:
    """Score and evaluate one model; what is stored is read back."""
    store = open_store(config)
    dense = stage_model(config.model, store)
    (job,) = scoring_jobs(config, dense, facts.roles.calibration, facts.counts)
    every = score_here(scoring_jobs(config, dense, facts.roles.calibration, facts.counts), config, store)
    found = [one for scores in every for one in compare_order(scores, model.orders[scores.criterion], job, store)]
    loaded = LoadedModels(config.model.dtype, "cuda" if torch.cuda.is_available() else "cpu")
    units = selection_units(config, facts.roles)
    scored = evaluate(dense, units, store, loaded, batch_size=config.evaluation.batch_size)
    if scored.missing:
        raise RuntimeError("; ".join(f"{one.name}: {one.cause}" for one in scored.missing))
    for score, (_, published) in zip(scored.perplexity, model.perplexities, strict=True):
        one = Compared(
            figure=f"{score.source} {score.protocol}",
            published=published,
            ours=score.perplexity,
            difference=score.perplexity / published - 1,
            allowed=PERPLEXITY_BOUND,
        )
        found.append(one)
    return found


def table(found: Sequence[Compared]) -> str:
    lines = [f"{'published':>9} {'ours':>8} {'difference':>10} {'std. error':>10} {'allowed':>8}"]
    for one in found:
        error = "-" if one.standard_error is None else f"{one.standard_error:.2%}"
        lines.append(
            f"{one.published:9.4g} {one.ours:8.4g} {one.difference:10.2%} {error:>10} {one.allowed:8.2%}  "
            f"{one.verdict:6} {one.figure}"
        )
    return "\n".join(lines)


def asked_models(given: Sequence[str], known: Mapping[str, Published]) -> dict[str, Published]:
    """`NAME` or `NAME=PATH` as rows of the table; all rows where nothing is given.

    Raises:
        BadInputError: a name is not in the table.
    """
    asked = {}
    for name, _, path in (one.partition("=") for one in given or known):
        if name not in known:
            raise BadInputError(f"--model: {name!r} is not in the table; known are {', '.join(known)}")
        row = known[name]
        asked[name] = replace(row, path=path) if path else row
    return asked


def check(name: str, model: Published) -> None:
    """Raises `BadInputError` where the model cannot be read, or has too few blocks for its published orders."""
    try:
        config, _ = inspect_model(ModelConfig(path=model.path))
    except BadInputError as error:
        raise BadInputError(f"--model {name}: {str(error).removeprefix('model.path: ')}") from None
    last = max(max(order) for order in model.orders.values())
    if last >= config.num_hidden_layers:
        raise BadInputError(
            f"--model {name}: {model.path!r} has {config.num_hidden_layers} blocks, but block {last} is published"
        )


def main(arguments: Sequence[str], known: Mapping[str, Published] = PUBLISHED) -> None:
    """Everything is checked before the first model is fetched; exit code 1 where something drifts."""
    parser = Parser(prog="python -m tests.benchmarks.published", description=__doc__)
    parser.add_argument("--model", metavar="NAME[=PATH]", nargs="+", default=[], help="some models of the table, or "
                        "such a model in another place; known are " + ", ".join(known))  # fmt: skip
    parser.add_argument("--calibration", metavar="FILE", help="text to score on instead of the hub's BookCorpus")
    parser.add_argument("--storage", metavar="URL", default="./results", help="where models and results are kept")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    calibration = {"path": options.calibration} if options.calibration else BOOK_CORPUS
    models = asked_models(options.model, known)
    for name, model in models.items():
        check(name, model)
    configs = {name: configuration(model, calibration, options.storage) for name, model in models.items()}
    facts = {name: check_config(config, open_store(config), evaluates=True) for name, config in configs.items()}
    figures = {}
    drifting = 0
    for name, model in models.items():
        found = compare(model, configs[name], facts[name])
        figures[name] = [asdict(one) | {"verdict": one.verdict} for one in found]
        drifting += sum(one.verdict == DRIFT for one in found)
        print(f"{name}: {model.path}\n{table(found)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2))
    print(f"{drifting} figures drift" if drifting else "no drift")
    if drifting:
        sys.exit(FAILED)


if __name__ == "__main__":
    run(main)
