"""A model's outputs for all rows of a split, gathered over ranks, and predictions made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deberta_scale.finetune.features_spans import span_predictions
from deberta_scale.finetune.loader import FineTuningLoader, TaskBatch
from deberta_scale.finetune.predictions import Prediction, label_predictions, word_predictions
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.rows import Row
from deberta_scale.finetune.tasks import Head, Task
from deberta_scale.train import watchdog
from deberta_scale.train.distributed import gather_objects
from deberta_scale.train.evaluation import EvaluationStopped
from deberta_scale.train.guards import DivergedError
from deberta_scale.train.metrics import Totals


@dataclass(frozen=True)
class Outputs:
    """Of all rows of a split."""

    logits: list[np.ndarray]
    """By row, fp32, without padding: [N] labels, [1] number, [C] choices, [L, N] labels of tokens, [2, L] first and
    last token of a span."""
    loss: float | None
    """Mean over the targets, without any penalty; None where the split has none."""


@torch.no_grad()
def predict(engine: Any, loader: FineTuningLoader, agree_to_stop: Callable[[], str | None] = lambda: None) -> Outputs:
    """The outputs of all rows, on every rank. `engine` wraps a TaskModel.

    Raises on all ranks EvaluationStopped when `agree_to_stop`, asked before each batch, gives a reason, and
    DivergedError when an output is not finite: the largest of such is nothing to predict by.
    """
    totals = Totals(engine.device)
    of_rank: dict[int, np.ndarray] = {}
    engine.eval()
    try:
        with engine.module.recorded() as recorded:
            for numbers, batch in loader.evaluation_batches():
                watchdog.enter("evaluation")
                if reason := agree_to_stop():
                    raise EvaluationStopped(reason)
                totals.add(*engine(batch.to(engine.device)))
                of_rank |= zip(numbers, _by_row(engine.module.head, recorded.pop(), batch), strict=False)
    finally:
        engine.train()
    watchdog.enter("evaluation")
    interval = totals.read()
    of_all = {number: row for of_some in gather_objects(of_rank) for number, row in of_some.items()}
    logits = [of_all[number] for number in range(len(loader))]
    _check_finite(logits)
    return Outputs(logits, interval.loss if loader.is_labelled else None)


def _by_row(head: Head, logits: torch.Tensor, batch: TaskBatch) -> list[np.ndarray]:
    rows = list(logits.float().cpu().numpy())
    if head not in ("tokens", "span"):
        return rows
    lengths = batch.segment_ids.sum(-1).tolist()
    if head == "span":
        return [row[:, :length] for row, length in zip(rows, lengths, strict=True)]
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def _check_finite(logits: Sequence[np.ndarray]) -> None:
    num_bad = sum(not np.isfinite(row).all() for row in logits)
    if num_bad:
        raise DivergedError(
            f"the model gives no finite output for {num_bad:,} of {len(logits):,} rows: its training has diverged; go"
            " on from an earlier checkpoint, or lower optimizer.learning_rate"
        )


def predictions_of(
    task: Task, examples: Sequence[Example], rows: Sequence[Row], logits: Sequence[np.ndarray]
) -> list[Prediction]:
    """A prediction for each example of a split, from the logits of its rows as in `Outputs`."""
    assert len(rows) == len(logits)
    if task.head == "tokens":
        return word_predictions(task.labels, examples, rows, logits)
    if task.head == "span":
        return span_predictions(examples, rows, [starts for starts, _ in logits], [ends for _, ends in logits])
    assert [row.example for row in rows] == list(range(len(examples))), "texts and choices make one row each"
    return label_predictions(task.labels, np.stack(logits))
