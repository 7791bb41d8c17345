"""A model and the examples of a split → its answers, and how long they took."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deberta_scale.evaluation.answers import Answer, answers_of
from deberta_scale.evaluation.models import Model
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.rows import Row
from deberta_scale.finetune.tasks import Task


@dataclass(frozen=True)
class Speed:
    """Of batches of rows of about the same length, each timed from arrays to arrays, after one that is not counted."""

    batch_rows: int
    median_seconds: float
    """Of a batch."""
    percentile_95_seconds: float
    tokens_per_second: float
    """Padding not counted."""
    device: str
    threads: int
    """Of torch on the CPU."""
    dtype: str = "float32"


@dataclass(frozen=True)
class Measured:
    answers: list[Answer]
    num_rows: int
    num_cut: int
    """Texts whose ends no row shows."""
    notes: tuple[str, ...]
    speed: Speed


def measure(model: Model, task: Task, examples: Sequence[Example], batch_rows: int) -> Measured:
    """Ask the model for all examples, `batch_rows` rows at a time.

    Raises ValueError when the model gives a number that is not finite, and as `Model.features`.
    """
    features = model.features(examples)
    rows = features.rows
    order = sorted(range(len(rows)), key=lambda number: -_length(rows[number]))
    batches = [order[first : first + batch_rows] for first in range(0, len(order), batch_rows)]
    model.logits([rows[number] for number in batches[0]])
    logits: dict[int, np.ndarray] = {}
    seconds = []
    for numbers in batches:
        start = time.perf_counter()
        found = model.logits([rows[number] for number in numbers])
        seconds.append(time.perf_counter() - start)
        logits |= zip(numbers, found, strict=True)
    num_bad = sum(not np.isfinite(array).all() for array in logits.values())
    if num_bad:
        raise ValueError(f"the model gives no finite output for {num_bad:,} of {len(rows):,} rows; its weights are bad")
    speed = Speed(
        batch_rows,
        float(np.median(seconds)),
        float(np.percentile(seconds, 95)),
        sum(len(sequence) for row in rows for sequence in row.sequences) / sum(seconds),
        torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        torch.get_num_threads(),
    )
    answers = answers_of(task, examples, rows, [logits[number] for number in range(len(rows))])
    return Measured(answers, len(rows), features.num_cut, features.notes, speed)


def _length(row: Row) -> int:
    return max(map(len, row.sequences))
