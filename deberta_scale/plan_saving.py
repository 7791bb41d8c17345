"""What checkpoints cost: bytes, seconds, and how often to save. Imports no torch.

Young's interval (J. W. Young, CACM 17, 1974): with B seconds without training for each save, and F seconds between
failures of the whole run, the least time is lost by saving every sqrt(2 B F) seconds. A run on n nodes fails n times
as often as one node.
"""

import math
from dataclasses import dataclass

from deberta_scale.config import Config, ConfigError
from deberta_scale.model.sizes import parameter_count
from deberta_scale.plan_memory import STATE_BYTES

NODE_HOURS_BETWEEN_FAILURES = 54 * 24 * 2048 / 419
"""6,334 hours, from the training of Llama 3 405B: 419 unexpected interruptions in 54 days of 16,384 GPUs, 8 a node
(Grattafiori et al. 2024, section 3.3.4). For a queue that takes nodes away give the time until it does."""
WRITE_RATE = 1e9
"""A judgement: bytes a second that all ranks together write to the disk of the run directory."""
COPY_RATE = 5e9
"""A judgement: bytes a second at which a rank copies its share to host memory, while training waits."""


@dataclass(frozen=True)
class SavePlan:
    checkpoint: int
    """Bytes, over all ranks."""
    num_kept: int
    """At most, at the end of the run."""
    disk: int
    """Bytes at most: those kept, and one that is being written."""
    write_rate: float
    """Bytes a second over all ranks."""
    write_seconds: float
    blocked_seconds: float
    """Of training, for each save."""
    blocked_assumed: bool
    """True when nobody gave a measured number."""
    nodes: int
    node_hours_between_failures: float
    interval_seconds: float
    """Young's, but never less than a save takes."""

    def steps_between(self, step_seconds: float, steps: int) -> int:
        """The interval in steps, for a run of `steps`: the last step is always saved."""
        return min(steps, max(1, round(self.interval_seconds / step_seconds)))


def plan_saving(
    config: Config,
    world_size: int,
    nodes: int,
    write_rate: float = WRITE_RATE,
    blocked_seconds: float | None = None,
    node_hours_between_failures: float = NODE_HOURS_BETWEEN_FAILURES,
) -> SavePlan:
    """Without `blocked_seconds` they are those of copying the state to host memory, or of writing it when it lies on
    disk and is not copied. Raises ConfigError for a number that is not positive."""
    _check_positive("--write-rate", write_rate / 1e9)
    _check_positive("--node-hours-between-failures", node_hours_between_failures)
    train, checkpoint = config.train, parameter_count(config.model).total * STATE_BYTES
    write_seconds = checkpoint / write_rate
    blocked = blocked_seconds
    if blocked is None:
        copied = config.engine.offload_optimizer != "disk"
        blocked = checkpoint / world_size / COPY_RATE if copied else write_seconds
    _check_positive("--blocked-seconds", blocked)
    num_kept = min(kept_checkpoints(config), -(-train.steps // train.save_every_steps))
    return SavePlan(
        checkpoint=checkpoint,
        num_kept=num_kept,
        disk=checkpoint * (num_kept + 1),
        write_rate=write_rate,
        write_seconds=write_seconds,
        blocked_seconds=blocked,
        blocked_assumed=blocked_seconds is None,
        nodes=nodes,
        node_hours_between_failures=node_hours_between_failures,
        interval_seconds=max(write_seconds, young_interval(blocked, node_hours_between_failures * 3600 / nodes)),
    )


def kept_checkpoints(config: Config) -> int:
    """The newest ones, and those that stay for good."""
    train = config.train
    return train.keep_last + (train.steps // train.keep_every_steps if train.keep_every_steps else 0)


def young_interval(blocked_seconds: float, seconds_between_failures: float) -> float:
    """Seconds from save to save that lose the least time."""
    return math.sqrt(2.0 * blocked_seconds * seconds_between_failures)


def _check_positive(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ConfigError(f"{name} {value:g}: give a positive number")
