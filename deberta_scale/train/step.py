"""One optimizer step, in the order things happen."""

import math
from typing import Any

from deberta_scale.data.loader import StepData
from deberta_scale.train import distributed, watchdog
from deberta_scale.train import engine as engines
from deberta_scale.train.engine_update import update
from deberta_scale.train.guards import LossCheck, NothingToPredictError, StepOutcome, skip_of
from deberta_scale.train.metrics import Totals


def train_step(
    engine: Any, data: StepData, learning_rate: float, totals: Totals, largest_norm: float = math.inf
) -> StepOutcome:
    """One optimizer step on this rank's micro-batches, together with all other ranks.

    The loss is the mean over the targets of all ranks and micro-batches: sums travel, the division happens once. All
    ranks skip the update when the loss of one of them is not finite, or when the gradient is not, or its norm is above
    `largest_norm`. Raises NothingToPredictError on all ranks when there is no target.
    """
    (predicted_in_step,) = distributed.sum_over_ranks([data.predicted_tokens])
    if not predicted_in_step:
        raise NothingToPredictError("no row of this step has anything to predict")
    scale = engine.world_size / predicted_in_step  # DeepSpeed averages gradients over ranks
    engines.set_learning_rate(engine, learning_rate)
    in_step = Totals(engine.device)
    for number, batch in enumerate(data.micro_batches, start=1):
        watchdog.enter("forward")
        loss_sum, predicted, correct = engine(batch.to(engine.device))
        in_step.add(loss_sum, predicted, correct)
        is_last = number == len(data.micro_batches)
        if is_last:
            loss = LossCheck(in_step.loss_sum)
        watchdog.enter("backward")
        engine.backward(loss_sum * scale, scale_wrt_gas=False)
        if not is_last:
            engine.step()  # counts
    watchdog.enter("update")
    skip = loss.skip()
    updated = update(engine, largest_norm if skip is None else -math.inf)
    skip = skip or skip_of(updated, largest_norm)
    if skip is None:
        totals.include(in_step)
    totals.add_read(data.useful_tokens, sum(b.token_ids.numel() for b in data.micro_batches), data.digest)
    return StepOutcome(updated.norm, skip)
