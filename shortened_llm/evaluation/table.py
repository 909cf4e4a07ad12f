"""Scores of several models as text for the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence

from shortened_llm.records import EfficiencyScore, EvalScores, EvaluatedModel, GenerationSpeed, ServingScore

SPEED_TITLES = f"{'batch':>5} {'new':>5} {'latency s':>18} {'first token s':>13} {'tokens/s':>9}"


def comparison_table(models: Sequence[EvaluatedModel]) -> str:
    """One line per score, one column per model; numbers stand side by side only under one protocol, and of one text."""
    names = [model.model.rstrip("/").rsplit("/", 1)[-1][-24:] for model in models]
    rows: dict[tuple[str, str, str, int], list[str]] = {}
    for index, model in enumerate(models):
        seen: Counter[tuple[str, str, str]] = Counter()
        for role, scores in (("selection", model.selection), ("report", model.report)):
            for name, protocol, documents, value in _cells(scores):
                key = (f"{role} {name}", protocol, documents)
                seen[key] += 1
                rows.setdefault((*key, seen[key]), ["-"] * len(models))[index] = value
    widths = [max(len(name), 12) for name in names]
    labels = _labels([(name, protocol) for name, protocol, _, _ in rows])
    label = max(map(len, labels), default=0)
    lines = [" " * label + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for name, (_, protocol, _, _), values in zip(labels, rows, rows.values(), strict=True):
        cells = "".join(f"  {value:>{width}}" for value, width in zip(values, widths, strict=True))
        lines.append(f"{name:<{label}}{cells}  {protocol}")
    for model, name in zip(models, names, strict=True):
        if model.report.efficiency:
            lines += ["", f"{name}: {model.report.efficiency.protocol}", *_speeds(model.report.efficiency)]
        if model.serving:
            lines += ["", f"{name}: {model.serving.protocol}", *_served(model.serving)]
    return "\n".join(lines)


def _labels(names: Sequence[tuple[str, str]]) -> list[str]:
    """Each name, with `(2)` behind that of a second text of one name and protocol."""
    seen: Counter[tuple[str, str]] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name[0] if seen[name] == 1 else f"{name[0]} ({seen[name]})")
    return labels


def _cells(scores: EvalScores) -> Iterator[tuple[str, str, str, str]]:
    """(score, protocol, documents of a text, value) of each."""
    for text in scores.perplexity:
        yield f"perplexity {text.source}", text.protocol, text.documents, f"{text.perplexity:.4f}"
    for task in scores.tasks:
        error = "" if task.standard_error is None else f" ±{task.standard_error:.3f}"
        yield f"{task.task} {task.metric}", task.protocol, "", f"{task.value:.4f}{error}"
        if task.bits_per_byte is not None:
            yield f"{task.task} bits/byte", task.protocol, "", f"{task.bits_per_byte:.4f}"
    for agreement in scores.agreement:
        yield f"KL to dense {agreement.source}", agreement.protocol, agreement.documents, f"{agreement.kl:.4f}"
        yield f"top-1 agreement {agreement.source}", agreement.protocol, agreement.documents, f"{agreement.top1:.4f}"
    for metric in scores.metrics:
        yield metric.name, metric.protocol, "", f"{metric.value:.6g}"


def _speeds(score: EfficiencyScore) -> list[str]:
    lines = [
        f"weights {score.weight_bytes / 2**20:,.0f} MiB, cache {score.kv_bytes_per_token:,} bytes a token, "
        f"{score.flops_per_token / 1e6:,.0f} MFLOPs a token",
        f"{SPEED_TITLES} {'memory MiB':>10} {'speed-up':>8} {'ideal':>6}",
    ]
    for point, speed_up, ideal in zip(score.points, score.speed_ups, score.ideal_speed_ups, strict=True):
        memory = point.peak_memory_bytes / 2**20
        lines.append(f"{_speed(point)} {memory:>10,.0f} {speed_up:>8.3f} {ideal:>6.3f}")
    return lines


def _served(score: ServingScore) -> list[str]:
    return [
        f"{SPEED_TITLES} {'speed-up':>8}",
        *(f"{_speed(point)} {speed_up:>8.3f}" for point, speed_up in zip(score.points, score.speed_ups, strict=True)),
    ]


def _speed(point: GenerationSpeed) -> str:
    return (
        f"{point.batch_size:>5} {point.output_tokens:>5} {point.latency:>10.4f} ±{point.latency_deviation:.4f} "
        f"{point.time_to_first_token:>13.4f} {point.throughput:>9.1f}"
    )
