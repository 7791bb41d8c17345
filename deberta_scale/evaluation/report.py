"""What is told of the answers of a model, or of several together: as facts for machines, as lines for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deberta_scale.evaluation.answers import Answer, predictions_from
from deberta_scale.evaluation.measured import Measured, Speed
from deberta_scale.evaluation.quality import NUM_BINS, TEMPERATURES, Calibration, ClassScores, calibration, class_scores
from deberta_scale.finetune.metrics import evaluate
from deberta_scale.finetune.metrics_answers import best_threshold, with_threshold
from deberta_scale.finetune.predictions import Prediction
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.tasks import Task


@dataclass(frozen=True)
class Quality:
    """Of answers to examples with labels."""

    metrics: dict[str, float]
    classes: list[ClassScores]
    calibration: Calibration | None
    no_answer_threshold: float | None
    """SQuAD 2.0: above this score a question is given no answer, the best for these examples."""


@dataclass(frozen=True)
class Judged:
    """Predictions, and how good they are; None where the split has no labels."""

    predictions: list[Prediction]
    quality: Quality | None


def judge(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> Judged:
    """Where a question may have no answer, predictions are those at the best threshold of a split with labels."""
    predictions = predictions_from(task, examples, answers)
    if any(example.label is None for example in examples):
        return Judged(predictions, None)
    threshold = best_threshold(examples, predictions) if "best_answer_f1" in task.metrics else None
    quality = Quality(
        evaluate(task, examples, predictions),
        class_scores(task, examples, predictions),
        calibration(task, examples, answers),
        threshold,
    )
    return Judged(predictions if threshold is None else with_threshold(predictions, threshold), quality)


def facts_of(judged: Judged, measured: Measured | None) -> dict[str, Any]:
    """What JSON can hold; `measured` is None for several models together."""
    facts = {} if judged.quality is None else asdict(judged.quality)
    if measured is None:
        return facts
    return facts | {
        "rows": measured.num_rows,
        "texts_cut": measured.num_cut,
        "notes": list(measured.notes),
        "speed": asdict(measured.speed),
    }


def lines_of(judged: Judged, measured: Measured | None) -> list[str]:
    lines = [] if judged.quality is None else _quality_lines(judged.quality)
    if measured is None:
        return lines
    lines.append(f"rows: {measured.num_rows:,}; texts that were cut: {measured.num_cut:,}")
    return [*lines, *(f"note: {note}" for note in measured.notes), _speed_line(measured.speed)]


def metrics_line(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _quality_lines(quality: Quality) -> list[str]:
    lines = [metrics_line(quality.metrics)]
    if quality.no_answer_threshold is not None:
        lines.append(f"no answer above the score {quality.no_answer_threshold:.4f}, which is best for these questions")
    if quality.classes:
        width = max(len("class"), *(len(scores.name) for scores in quality.classes))
        lines.append(f"{'class':<{width}}  precision  recall      f1  support")
        lines += [
            f"{s.name:<{width}}  {s.precision:9.4f}  {s.recall:6.4f}  {s.f1:6.4f}  {s.support:7,}"
            for s in quality.classes
        ]
    if quality.calibration is not None:
        lines.append(_calibration_line(quality.calibration))
    return lines


def _calibration_line(found: Calibration) -> str:
    lowest, highest = TEMPERATURES
    is_end = not lowest * 1.01 < found.temperature < highest / 1.01
    end = ", the end of what is tried" if is_end else ""
    return (
        f"calibration: expected calibration error {found.expected_calibration_error:.4f} ({NUM_BINS} bins of equal"
        f" mass), Brier score {found.brier_score:.4f}; temperature {found.temperature:.3f}{end}, fitted on these"
        f" examples: error {found.error_at_temperature:.4f}"
    )


def _speed_line(speed: Speed) -> str:
    return (
        f"speed: a batch of up to {speed.batch_rows} rows took {speed.median_seconds * 1000:.1f} ms (median), 95 % up"
        f" to {speed.percentile_95_seconds * 1000:.1f} ms; {speed.tokens_per_second:,.0f} tokens/s; {speed.device},"
        f" {speed.threads} threads, {speed.dtype}"
    )
