"""`trials.csv`: one flat row per trial. A cell without a number is empty.

Columns, always in this order:

- `number` in the report, `name`, `fingerprint`, `experiments` that have the trial, separated by `;`, `status` (done,
  running, stopped, waiting, left out, failed), `failure` (its cause), `left_out` (why), `best_of_target` (True, False);
- `criteria`, `ratios` and what these are fractions of (`of`), one entry per label, separated by `;`;
- `blocks` (count), `block_ratio` (removed / all), `parameters` (count), `parameter_ratio` (removed / all),
  `nonzero_parameters` (count), `bytes` of the exported weights;
- `control` (dense, random, scratch; empty for a candidate), `method`, `train_on` (corpus, instructions), `rounds`
  (count) in which blocks went, `settings` of the method that a search may vary, such as a rank, `learning_rates` of the
  training runs, separated by `;`, `seed`, `rung` (share of the token budget), `candidate` (alike for its rungs; empty
  without), `equal_seconds` (True, False), `budget_tokens` as planned, padding included;
- `tokens` without padding, `training_seconds`, `accelerator_seconds`, `trial_seconds`, `tokens_per_second`,
  `skipped_steps` and `loss_spikes` (counts), `checkpoint_url`, `adapter_url`;
- `selection_before_mean_nll`, `selection_after_mean_nll`: mean over the selection texts, in nats per token;
  `search_metric` and `search_loss`: what the search minimises, a metric of which more is better negated;
  `selection_texts`: those texts and their protocols, separated by `;`: means of other texts cannot be compared;
- `missing_scores`: what could not be measured and why, separated by `;`;
- what was done to the dense model, each column only where a trial has it: blocks that were kept, `removed_blocks`,
  `removed_attention` and `removed_mlp` as indices in the dense model, separated by spaces; `kept_kv_heads` and
  `kept_channels` of a block, such as `2 of 3`; `recomputed` and `zero_weights` in words;
- per score `<role>_<stage>_<metric>:<source>:<protocol>`, where role is selection or report and stage is dense, before
  or after (retraining); a `:2` follows for a second text with the same name and protocol. Metrics: `perplexity`; that
  of a task, with `<metric>_standard_error`; `bits_per_byte` of a task's gold answers; `kl` (nats) and `top1` (share) of
  agreement with the dense model; `value` of a measure of your own;
- per task `report_difference_<metric>:…`, the paired difference to the dense model, its `_standard_error` over items,
  `_mcnemar_p` (of a 0/1 metric) and `_flips` (items whose answer changed), and `report_difference_bits_per_byte:…`
  with its `_standard_error`;
- per set of tasks `report_after_task_mean:<tasks>` and `report_dense_task_mean:<tasks>`, plain means;
- per shape of input `report_<stage>_<measure>:<shape>:<protocol>`, where stage is dense (from the same turns) or after,
  and measure is `latency` (s), `latency_deviation`, `time_to_first_token` (s), `throughput` (tokens/s),
  `peak_memory_bytes`, `gpu_utilisation` (0 to 1); with `report_speed_up:…`, `report_ideal_speed_up:…`, and the shares
  of the dense model's time (0 to 1) `report_block_share:…` and `report_head_share:…`;
- `report_<stage>_<measure>:<protocol>`, where measure is `weight_bytes`, `kv_bytes_per_token`, `flops_per_token`.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict

from shortened_llm.records import EvalScores
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.efficiency import MEASURES, shape, shape_name
from shortened_llm.reporting.missing import missing_scores
from shortened_llm.reporting.rows import TrialRow
from shortened_llm.reporting.tasks import TaskSet, differences, task_columns, task_mean

Cell = str | int | float | bool | None
Cells = dict[str, Cell]

TRIAL_CELLS: dict[str, Callable[[TrialRow], Cell]] = {
    "number": lambda row: row.number,
    "name": lambda row: row.trial.spec.name,
    "fingerprint": lambda row: row.trial.spec.fingerprint,
    "experiments": lambda row: ";".join(row.trial.experiments),
    "status": lambda row: row.status,
    "failure": lambda row: row.trial.failure if row.status == "failed" else None,
    "left_out": lambda row: row.trial.left_out if row.status == "left out" else None,
    "best_of_target": lambda row: row.is_best,
    "criteria": lambda row: ";".join(label.ranking for label in row.plan.labels),
    "ratios": lambda row: ";".join(repr(label.target.ratio) for label in row.plan.labels),
    "of": lambda row: ";".join(label.target.of for label in row.plan.labels),
    "blocks": lambda row: row.plan.size.blocks,
    "block_ratio": lambda row: row.plan.block_ratio,
    "parameters": lambda row: row.plan.size.parameters,
    "parameter_ratio": lambda row: row.plan.parameter_ratio,
    "nonzero_parameters": lambda row: row.plan.size.nonzero_parameters,
    "bytes": lambda row: row.plan.size.num_bytes,
    "control": lambda row: row.trial.spec.control,
    "method": lambda row: row.trial.spec.method,
    "train_on": lambda row: row.trial.spec.train_on if row.learning_rates else None,
    "rounds": lambda row: len(row.trial.spec.rounds.gone) if row.trial.spec.rounds else 1,
    "settings": lambda row: row.trial.spec.settings,
    "learning_rates": lambda row: ";".join(map(repr, row.learning_rates)),
    "seed": lambda row: row.seed,
    "rung": lambda row: row.rung if row.learning_rates else None,
    "candidate": lambda row: row.trial.spec.candidate or None,
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
    "search_metric": lambda row: row.trial.spec.objective.title,
    "search_loss": lambda row: row.loss,
    "selection_texts": lambda row: _selection_texts(row),
    "missing_scores": lambda row: ";".join(f"{score.name}: {score.cause}" for score in missing_scores(row)),
}


def _selection_texts(row: TrialRow) -> str:
    texts = row.trial.result.after.perplexity if row.trial.result else ()
    return ";".join(f"{text.source}, {text.protocol}" for text in texts)


def _mean_nll(scores: EvalScores) -> float | None:
    return scores.mean_nll if scores.perplexity else None


def score_cells(row: TrialRow, columns: Sequence[ScoreColumn], dense: Measurements) -> Cells:
    """The scores of one trial by column name."""
    cells: Cells = {}
    for column in columns:
        name = _name(column)
        stages = {"dense": dense, "before": row.before, "after": row.after}
        for stage, found in stages.items():
            measured = found.get(column)
            prefix = f"{column.role}_{stage}_{column.metric}"
            cells[f"{prefix}:{name}"] = measured.value if measured else None
            if column.kind == "task":
                cells[f"{prefix}_standard_error:{name}"] = measured.standard_error if measured else None
    return cells


def _name(column: ScoreColumn) -> str:
    return f"{column.source}:{column.protocol}" + (f":{column.occurrence}" if column.occurrence > 1 else "")


def task_cells(row: TrialRow, columns: Sequence[ScoreColumn], dense: Measurements, sets: Sequence[TaskSet]) -> Cells:
    """Paired differences to the dense model, and plain means."""
    cells: Cells = {}
    paired = differences(row.after, dense, task_columns(columns))
    for column in task_columns(columns):
        prefix, name, found = f"report_difference_{column.metric}", _name(column), paired.get(column)
        bits = found.bits_per_byte if found else None
        cells |= {
            f"{prefix}:{name}": found.value.mean if found else None,
            f"{prefix}_standard_error:{name}": found.value.standard_error if found else None,
            f"{prefix}_mcnemar_p:{name}": found.mcnemar_p if found else None,
            f"{prefix}_flips:{name}": found.num_flips if found else None,
            f"report_difference_bits_per_byte:{name}": bits.mean if bits else None,
            f"report_difference_bits_per_byte_standard_error:{name}": bits.standard_error if bits else None,
        }
    for tasks in sets:
        of = "+".join(column.title for column in tasks)
        cells[f"report_dense_task_mean:{of}"] = task_mean(dense, tasks)
        cells[f"report_after_task_mean:{of}"] = task_mean(row.after, tasks)
    return cells


def efficiency_cells(row: TrialRow) -> Cells:
    """Speed and memory at each shape of input."""
    score, cells = row.trial.after.efficiency, Cells()
    if score is None:
        return cells
    for point in score.points:
        name = f"{shape_name(shape(point.model))}:{score.protocol}"
        for measure in MEASURES:
            cells[f"report_dense_{measure}:{name}"] = getattr(point.dense, measure)
            cells[f"report_after_{measure}:{name}"] = getattr(point.model, measure)
        cells[f"report_speed_up:{name}"] = point.speed_up
        cells[f"report_ideal_speed_up:{name}"] = point.ideal_speed_up
        cells[f"report_block_share:{name}"] = point.block_share
        cells[f"report_head_share:{name}"] = point.head_share
    for stage, footprint in (("dense", score.dense), ("after", score.model)):
        for measure, value in asdict(footprint).items():
            cells[f"report_{stage}_{measure}:{score.protocol}"] = value
    return cells


def to_csv(
    rows: Sequence[TrialRow], columns: Sequence[ScoreColumn], dense: Measurements, sets: Sequence[TaskSet]
) -> str:
    """The file's text: a heading and one line per trial."""
    lines = [
        {name: cell(row) for name, cell in TRIAL_CELLS.items()}
        | row.plan.facts
        | score_cells(row, columns, dense)
        | task_cells(row, columns, dense, sets)
        | efficiency_cells(row)
        for row in rows
    ]
    buffer = io.StringIO()
    facts = (name for row in rows for name in row.plan.facts)
    names = dict.fromkeys((*TRIAL_CELLS, *facts, *(name for cells in lines for name in cells)))
    writer = csv.DictWriter(buffer, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
