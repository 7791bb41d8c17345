"""The loss on held-out rows."""

import time
from collections.abc import Callable
from typing import Any

import torch

from deberta_scale.config import Config
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.train import watchdog
from deberta_scale.train.metrics import Interval, Totals, duration, sum_of


class EvaluationStopped(Exception):
    """All ranks left an evaluation before its end, for the reason that is the message."""


def judge(
    engine: Any, held_out: MaskedLoader, config: Config, agree_to_stop: Callable[[], str | None]
) -> tuple[dict[str, Any], str]:
    """What an evaluation finds, for the log and for people. Raises EvaluationStopped as `evaluate`."""
    start = time.perf_counter()
    mixture = config.data.mixture
    shares = None if mixture is None else mixture.share_of_run(config.train.steps)
    by_source = evaluate(engine, held_out, config.train.evaluate_sequences, shares, agree_to_stop)
    result = sum_of(by_source.values())
    values: dict[str, Any] = {"loss": result.loss, "perplexity": result.perplexity, "masked_accuracy": result.accuracy}
    values["unigram_entropy"] = held_out.unigram_entropy_nats
    values |= {f"loss/{name}": part.loss for name, part in by_source.items() if name}
    values["predicted_tokens"] = result.predicted_tokens
    of_sources = "".join(f"  {name} {part.loss:.4f}" for name, part in by_source.items() if name)
    line = (
        f"loss {result.loss:.4f}  perplexity {result.perplexity:,.1f}  masked accuracy {result.accuracy:.3f}"
        f"  ({result.predicted_tokens:,} predictions, {duration(time.perf_counter() - start)}){of_sources}"
    )
    return values, line


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
