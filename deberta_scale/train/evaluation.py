"""The loss on held-out rows."""

from collections.abc import Callable
from typing import Any

import torch

from deberta_scale.data.loader import MaskedLoader
from deberta_scale.train import watchdog
from deberta_scale.train.metrics import Interval, Totals


class EvaluationStopped(Exception):
    """All ranks left an evaluation before its end, for the reason that is the message."""


@torch.no_grad()
def evaluate(
    engine: Any,
    loader: MaskedLoader,
    sequences: int,
    shares: dict[str, float] | None = None,
    agree_to_stop: Callable[[], str | None] = lambda: None,
) -> dict[str, Interval]:
    """Sums over the first `sequences` rows of the held-out split, always with the same masks; of a mixture by source,
    `shares` of the rows from each.

    Raises EvaluationStopped on all ranks when `agree_to_stop`, asked before each batch, gives a reason.
    """
    totals = Totals(engine.device)
    engine.eval()
    intervals = {}
    try:
        for part in loader.evaluation_parts(sequences, shares):
            for batch in part.batches:
                watchdog.enter("evaluation")
                if reason := agree_to_stop():
                    raise EvaluationStopped(reason)
                totals.add(*engine(batch.to(engine.device)))
            intervals[part.source] = totals.read()
    finally:
        engine.train()
    return intervals
