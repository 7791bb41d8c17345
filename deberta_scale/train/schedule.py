"""Step → learning rate. Pure, so that resuming needs no scheduler state."""

import math

from deberta_scale.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Share of the peak learning rate used by the update number `step` (0-based) of `total_steps`.

    Warm-up rises linearly and reaches the peak at its last step; the shape after it starts at the peak, without the
    jump of the official `warmup_linear`, and reaches `final_fraction` at the last step.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    length = schedule.decay_steps or max(1, total_steps - schedule.warmup_steps)
    progress = max(0.0, min(1.0, (step + 1 - (total_steps - length)) / length))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1.0 - progress
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * shape
