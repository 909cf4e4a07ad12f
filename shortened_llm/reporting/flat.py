"""`trials.csv`: one flat row per trial. A cell without a number is empty.

Columns, always in this order:

- `number` in the report, `name`, `fingerprint`, `status` (done, failed, not finished), `failure` (its cause),
  `best_of_size` (True, False);
- `criteria` and `ratios`, one entry per label, separated by `;`;
- `kept_blocks` and `removed_blocks`: indices in the dense model, separated by spaces; `num_kept_blocks`,
  `num_removed_blocks`, `block_ratio` (removed / all), `parameters` (count), `parameter_ratio` (removed / all);
- `control` (dense, random; empty for a candidate), `method`, `train_on` (corpus, instructions), `learning_rates` of the
  training runs, separated by `;`, `seed`, `equal_seconds` (True, False), `budget_tokens` as planned, padding included;
- `tokens` without padding, `training_seconds`, `accelerator_seconds`, `trial_seconds`, `tokens_per_second`,
  `skipped_steps` and `loss_spikes` (counts), `checkpoint_url`, `adapter_url`;
- `selection_before_mean_nll`, `selection_after_mean_nll`: mean over the selection texts, in nats per token;
- per score `<role>_<stage>_<metric>:<source>:<protocol>`, where role is selection or report and stage is dense, before
  or after (retraining); a `:2` follows for a second text with the same name and protocol. Tasks have a second column
  `<role>_<stage>_<metric>_standard_error:…`.
"""

import csv
import io
from collections.abc import Callable, Sequence

from shortened_llm.records import EvalScores
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.rows import TrialRow

Cell = str | int | float | bool | None

TRIAL_CELLS: dict[str, Callable[[TrialRow], Cell]] = {
    "number": lambda row: row.number,
    "name": lambda row: row.trial.spec.name,
    "fingerprint": lambda row: row.trial.spec.fingerprint,
    "status": lambda row: row.status,
    "failure": lambda row: row.trial.failure if row.status == "failed" else None,
    "best_of_size": lambda row: row.best_of_size,
    "criteria": lambda row: ";".join(label.criterion for label in row.plan.labels),
    "ratios": lambda row: ";".join(repr(label.ratio) for label in row.plan.labels),
    "kept_blocks": lambda row: " ".join(map(str, row.plan.kept_blocks)),
    "removed_blocks": lambda row: " ".join(map(str, row.plan.removed_blocks)),
    "num_kept_blocks": lambda row: len(row.plan.kept_blocks),
    "num_removed_blocks": lambda row: len(row.plan.removed_blocks),
    "block_ratio": lambda row: row.plan.block_ratio,
    "parameters": lambda row: row.plan.parameters,
    "parameter_ratio": lambda row: row.plan.parameter_ratio,
    "control": lambda row: row.trial.spec.control,
    "method": lambda row: row.trial.spec.method,
    "train_on": lambda row: row.trial.spec.train_on if row.learning_rates else None,
    "learning_rates": lambda row: ";".join(map(repr, row.learning_rates)),
    "seed": lambda row: row.seed,
    "equal_seconds": lambda row: row.trial.spec.equal_seconds,
    "budget_tokens": lambda row: sum(recipe.tokens for recipe in row.trial.spec.recipes),
    "tokens": lambda row: row.tokens,
    "training_seconds": lambda row: row.training_seconds,
    "accelerator_seconds": lambda row: row.accelerator_seconds,
    "trial_seconds": lambda row: row.trial_seconds,
    "tokens_per_second": lambda row: row.tokens_per_second,
    "skipped_steps": lambda row: len(row.skipped_steps) if row.trial.result else None,
    "loss_spikes": lambda row: len(row.loss_spikes) if row.trial.result else None,
    "checkpoint_url": lambda row: row.checkpoint_url,
    "adapter_url": lambda row: row.adapter_url,
    "selection_before_mean_nll": lambda row: _mean_nll(row.trial.result.before) if row.trial.result else None,
    "selection_after_mean_nll": lambda row: _mean_nll(row.trial.result.after) if row.trial.result else None,
}


def _mean_nll(scores: EvalScores) -> float | None:
    return scores.mean_nll if scores.perplexity else None


def score_cells(row: TrialRow | None, columns: Sequence[ScoreColumn], dense: Measurements) -> dict[str, Cell]:
    """The scores of one trial by column name; without a trial, the names."""
    cells: dict[str, Cell] = {}
    for column in columns:
        name = f"{column.source}:{column.protocol}" + (f":{column.occurrence}" if column.occurrence > 1 else "")
        stages = {"dense": dense, "before": row.before if row else {}, "after": row.after if row else {}}
        for stage, found in stages.items():
            measured = found.get(column)
            prefix = f"{column.role}_{stage}_{column.metric}"
            cells[f"{prefix}:{name}"] = measured.value if measured else None
            if column.is_task:
                cells[f"{prefix}_standard_error:{name}"] = measured.standard_error if measured else None
    return cells


def to_csv(rows: Sequence[TrialRow], columns: Sequence[ScoreColumn], dense: Measurements) -> str:
    """The file's text: a heading and one line per trial."""
    buffer = io.StringIO()
    names = [*TRIAL_CELLS, *score_cells(None, columns, dense)]
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: cell(row) for name, cell in TRIAL_CELLS.items()}
        writer.writerow(cells | score_cells(row, columns, dense))
    return buffer.getvalue()
