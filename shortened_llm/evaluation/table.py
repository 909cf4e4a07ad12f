"""Scores of several models as text for the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence

from shortened_llm.records import EfficiencyScore, EvalScores, EvaluatedModel, Footprint, GenerationSpeed, ServingScore

LONGEST_NAME = 24
SPEED_TITLES = f"{'batch':>5} {'new':>5} {'latency s':>18} {'first token s':>13} {'tokens/s':>9}"


def comparison_table(models: Sequence[EvaluatedModel]) -> str:
    """One line per score, one column per model; only numbers of one unit stand side by side."""
    names = _column_names(models)
    rows: dict[tuple[str, str, str], list[str]] = {}
    for index, model in enumerate(models):
        for role, scores in (("selection", model.selection), ("report", model.report)):
            for unit, name, protocol, value in _cells(scores):
                rows.setdefault((unit, f"{role} {name}", protocol), ["-"] * len(models))[index] = value
    widths = [max(len(name), 12) for name in names]
    labels = _labels([(name, protocol) for _, name, protocol in rows])
    label = max(map(len, labels), default=0)
    lines = [" " * label + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for name, (_, _, protocol), values in zip(labels, rows, rows.values(), strict=True):
        cells = "".join(f"  {value:>{width}}" for value, width in zip(values, widths, strict=True))
        lines.append(f"{name:<{label}}{cells}  {protocol}")
    for model, name in zip(models, names, strict=True):
        missing = (*model.selection.missing, *model.report.missing)
        lines += [f"{name}: {one.name} is missing: {one.cause}" for one in missing]
        if model.report.efficiency:
            lines += ["", f"{name}: {model.report.efficiency.protocol}", *_speeds(model.report.efficiency)]
        if model.serving:
            lines += ["", f"{name}: {model.serving.protocol}", *_served(model.serving)]
    return "\n".join(lines)


def _column_names(models: Sequence[EvaluatedModel]) -> list[str]:
    """What the cards call the models, where these are different names; else the ends of their paths."""
    ends = _short_names([model.model for model in models])
    names = [model.name or end for model, end in zip(models, ends, strict=True)]
    return names if len(set(names)) == len(set(ends)) else ends


def _short_names(paths: Sequence[str]) -> list[str]:
    """The end of each path that tells it from the others."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:])[-LONGEST_NAME:] for own in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)


def _labels(names: Sequence[tuple[str, str]]) -> list[str]:
    """Each name, with `(2)` behind that of a second text of one name and protocol."""
    seen: Counter[tuple[str, str]] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name[0] if seen[name] == 1 else f"{name[0]} ({seen[name]})")
    return labels


def _cells(scores: EvalScores) -> Iterator[tuple[str, str, str, str]]:
    """(unit, score, protocol, value) of each."""
    for text in scores.perplexity:
        yield text.unit, f"perplexity {text.source}", text.protocol, f"{text.perplexity:.4f}"
    for task in scores.tasks:
        error = "" if task.standard_error is None else f" ±{task.standard_error:.3f}"
        yield task.unit, f"{task.task} {task.metric}", task.protocol, f"{task.value:.4f}{error}"
        if task.bits_per_byte is not None:
            yield task.unit, f"{task.task} bits/byte", task.protocol, f"{task.bits_per_byte:.4f}"
    for agreement in scores.agreement:
        unit, source, protocol = agreement.unit, agreement.source, agreement.protocol
        yield unit, f"KL to dense {source}", protocol, f"{agreement.kl:.4f}"
        yield unit, f"top-1 agreement {source}", protocol, f"{agreement.top1:.4f}"
    for metric in scores.metrics:
        yield metric.unit, metric.name, metric.protocol, f"{metric.value:.6g}"


def _speeds(score: EfficiencyScore) -> list[str]:
    lines = [
        _footprint("dense", score.dense),
        _footprint("model", score.model),
        f"{'':>5} {SPEED_TITLES} {'memory MiB':>10} {'blocks':>6} {'head':>6} {'speed-up':>8} {'ideal':>6}",
    ]
    for point in score.points:
        dense, own, ideal = point.dense, point.model, point.ideal_speed_up
        shares = f"{point.block_share:>6.1%} {point.head_share:>6.1%}"
        gains = f"{point.speed_up:>8.3f} {'-' if ideal is None else f'{ideal:.3f}':>6}"
        lines.append(f"dense {_speed(dense)} {dense.peak_memory_bytes / 2**20:>10,.0f} {shares}")
        lines.append(f"model {_speed(own)} {own.peak_memory_bytes / 2**20:>10,.0f} {'':>13} {gains}")
    return lines


def _footprint(name: str, of: Footprint) -> str:
    return (
        f"{name} weights {of.weight_bytes / 2**20:,.0f} MiB, cache {of.kv_bytes_per_token:,} bytes a token, "
        f"{of.flops_per_token / 1e6:,.0f} MFLOPs a token"
    )


def _served(score: ServingScore) -> list[str]:
    lines = [f"{'':>5} {SPEED_TITLES} {'speed-up':>8}"]
    for dense, own, speed_up in zip(score.dense_points, score.points, score.speed_ups, strict=True):
        lines += [f"dense {_speed(dense)}", f"model {_speed(own)} {speed_up:>8.3f}"]
    return lines


def _speed(point: GenerationSpeed) -> str:
    return (
        f"{point.batch_size:>5} {point.output_tokens:>5} {point.latency:>10.4f} ±{point.latency_deviation:.4f} "
        f"{point.time_to_first_token:>13.4f} {point.throughput:>9.1f}"
    )
