"""What ranks send each other in a step, by ZeRO stage. Imports no torch.

Bytes that leave one rank, in rings of N ranks: reducing and scattering, or gathering, S bytes sends S (N-1)/N of them,
an all-reduce twice that (Rajbhandari et al. 2020, section 7). What DeepSpeed 0.19 does with P parameters:

- stage 0: all-reduce of the gradients, once a step.
- stage 1: the same, then gather the updated parameters.
- stage 2: the same for each micro-batch. (Stages 1 and 2 need their own share of the sums only; DeepSpeed all-reduces
  its buckets all the same.)
- stage 3, for each micro-batch: gather the parameters for forward, gather again for backward those that were released
  in between, reduce and scatter the gradients. Of P parameters, `live` stay gathered (train/buffers.py). Activation
  checkpointing adds nothing: a layer is gathered once for its recomputation and its backward, which follow each other.

Left out: the few numbers that ranks agree on, and the vectors that stage 3 keeps whole, under a thousandth.
"""

from dataclasses import dataclass

from deberta_scale.config import Config
from deberta_scale.model.sizes import parameter_count
from deberta_scale.plan_memory import weight_bytes
from deberta_scale.train.buffers import choose_buffers

QUANTIZED_WEIGHT_BYTES = 1.0
QUANTIZED_GRADIENT_BYTES = 0.5


@dataclass(frozen=True)
class Communication:
    """Bytes that leave one rank in a step of the optimizer."""

    gradients: int
    gathered_for_forward: int
    """Parameters, in stage 3."""
    gathered_for_backward: int
    """Parameters that were released since forward, in stage 3."""
    gathered_after_update: int
    """Parameters, in stages 1 and 2."""
    backward_stays_inside: bool
    """Whether the gathering for backward stays inside the machine (`engine.hpz_partition_size`)."""
    overlaps: bool
    """Whether the engine computes meanwhile."""

    @property
    def total(self) -> int:
        return self.gradients + self.gathered_for_forward + self.gathered_for_backward + self.gathered_after_update

    @property
    def between_machines(self) -> int:
        """Of the total, what a ring over several machines carries."""
        return self.total - (self.gathered_for_backward if self.backward_stays_inside else 0)


def communication_per_step(config: Config, world_size: int) -> Communication:
    """Of each rank. Raises ConfigError when the batch does not divide over the ranks."""
    engine, total = config.engine, parameter_count(config.model).total
    passes = config.batch.accumulation_steps(world_size)
    buffers, element = choose_buffers(config.model, engine, world_size), weight_bytes(config)
    sent = total * (world_size - 1) / world_size
    if engine.zero_stage < 3:
        reductions = passes if engine.zero_stage == 2 else 1
        gathered = round(sent * element) if engine.zero_stage else 0
        return Communication(round(2 * reductions * sent * element), 0, 0, gathered, False, buffers.overlap)
    weight = QUANTIZED_WEIGHT_BYTES if engine.quantized_weights else element
    gradient = QUANTIZED_GRADIENT_BYTES if engine.quantized_gradients else element
    released = 1.0 - buffers.live / total
    return Communication(
        gradients=round(passes * sent * gradient),
        gathered_for_forward=round(passes * sent * weight),
        gathered_for_backward=round(passes * sent * weight * released),
        gathered_after_update=0,
        backward_stays_inside=engine.hpz_partition_size > 1,
        overlaps=buffers.overlap,
    )
