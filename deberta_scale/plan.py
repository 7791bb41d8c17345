"""What a run will need, from its config and the number of ranks: memory, FLOPs, traffic, time, disk. Imports no torch.

Formulas, not measurements: each part says its own (`plan_memory`, `plan_communication`, `plan_machine`, `plan_saving`,
`plan_data`), and `launch/pretrain.py --rehearse` holds them against a machine.
"""

import math
from dataclasses import dataclass

from deberta_scale.config import Config, ConfigError
from deberta_scale.model.sizes import ParameterCount, parameter_count, training_flops_per_sequence
from deberta_scale.plan_communication import Communication, communication_per_step
from deberta_scale.plan_data import SourcePlan, plan_sources
from deberta_scale.plan_machine import MachinePlan, machine_named, plan_machine
from deberta_scale.plan_memory import (
    FP32_BYTES,
    Memory,
    activation_bytes,
    fp32_score_bytes,
    memory_per_rank,
    model_bytes_at_start,
)
from deberta_scale.plan_saving import NODE_HOURS_BETWEEN_FAILURES, WRITE_RATE, SavePlan, plan_saving
from deberta_scale.train.buffers import Buffers, choose_buffers

DEFAULT_TFLOPS_PER_RANK = 50.0
"""A judgement about the hardware, not a measurement: give the rate that `mfu` in a run's log amounts to."""
ASSUMED_RANKS_PER_NODE = 8
"""Where no machine is named."""


@dataclass(frozen=True)
class Hardware:
    """What is known of the machines; None: nothing."""

    machine: str | None = None
    """A name of `plan_machine.MACHINES`."""
    network_gbit: float | None = None
    """Gbit a second that a node sends to others; None: the machine's own."""
    tflops_per_rank: float | None = None
    """Measured over whole steps, communication included; recomputation not counted."""
    write_rate: float = WRITE_RATE
    """Bytes a second over all ranks, to the disk of the run directory."""
    blocked_seconds: float | None = None
    """Of training for a save, measured."""
    node_hours_between_failures: float = NODE_HOURS_BETWEEN_FAILURES


UNKNOWN = Hardware()


@dataclass(frozen=True)
class Plan:
    world_size: int
    nodes_assumed: bool
    """True when nobody named a machine, so that `saving.nodes` are of `ASSUMED_RANKS_PER_NODE`."""
    steps: int
    tokens_per_step: int
    """Token places, over all ranks."""
    predicted_in_micro_batch: int
    """Tokens, about."""
    parameters: ParameterCount
    accumulation_steps: int
    memory: Memory
    model_at_start: int
    """Bytes that each rank takes while it builds the model, before the optimizer's: its own parameters twice while they
    are put end to end, and in stage 3 the largest one whole."""
    activations_without_checkpointing: int
    activations_with_checkpointing: int
    """Kept ones and those of the layer that is recomputed."""
    fp32_scores_per_layer: int
    """Bytes of the fp32 score matrices that one layer keeps for backward, part of the activations."""
    buffers: Buffers
    communication: Communication
    flops_per_step: float
    """Over all ranks; recomputation not counted."""
    tflops_per_rank: float
    """As given, as the machine would reach it, or assumed."""
    tflops_assumed: bool
    """True when nobody gave a rate."""
    machine: MachinePlan | None
    """None when no machine was named."""
    saving: SavePlan
    export: int
    """Bytes on disk of the weights alone, fp32."""
    sources: tuple[SourcePlan, ...]
    """The directories of shards, and how often each is read."""

    @property
    def step_seconds(self) -> float:
        """Of an optimizer step."""
        return self.flops_per_step / (self.tflops_per_rank * 1e12 * self.world_size)

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.flops_per_step * self.steps

    @property
    def tokens(self) -> int:
        """Token places of the whole run."""
        return self.tokens_per_step * self.steps

    @property
    def tokens_per_second(self) -> float:
        """Token places, over all ranks."""
        return self.tokens_per_step / self.step_seconds

    @property
    def days(self) -> float:
        """Of the whole run, without saves, evaluations and failures."""
        return self.step_seconds * self.steps / 86400

    @property
    def steps_between_saves(self) -> int:
        """That lose the least time."""
        return self.saving.steps_between(self.step_seconds, self.steps)


def make_plan(config: Config, world_size: int = 1, hardware: Hardware = UNKNOWN) -> Plan:
    """Derive everything. Raises ConfigError when the batch does not divide over the ranks, when the vocabulary is too
    small for the shards, or when a given number makes no sense."""
    rate = hardware.tflops_per_rank
    if world_size < 1:
        raise ConfigError(f"--world-size {world_size}: a run has at least 1 rank")
    if rate is not None and not (rate > 0.0 and math.isfinite(rate)):
        raise ConfigError(f"--tflops-per-rank {rate}: give a positive rate in TFLOP/s, for instance 50")
    nodes = _nodes(world_size, hardware.machine)
    accumulation = config.batch.accumulation_steps(world_size)
    flops_per_step = config.batch.sequences * training_flops_per_sequence(
        config.model, config.data.sequence_length, config.data.masking.probability, config.batch.micro_sequences
    )
    machine = None
    reached = rate or DEFAULT_TFLOPS_PER_RANK
    if hardware.machine is not None:
        machine = plan_machine(config, hardware.machine, nodes, flops_per_step, hardware.network_gbit, rate)
        if machine.model is not None:
            reached = flops_per_step / world_size / machine.model.seconds / 1e12
    return Plan(
        world_size=world_size,
        nodes_assumed=machine is None,
        steps=config.train.steps,
        tokens_per_step=config.tokens_per_step,
        predicted_in_micro_batch=round(
            config.data.masking.probability * config.data.sequence_length * config.batch.micro_sequences
        ),
        parameters=parameter_count(config.model),
        accumulation_steps=accumulation,
        memory=memory_per_rank(config, world_size),
        model_at_start=model_bytes_at_start(config, world_size),
        activations_without_checkpointing=sum(activation_bytes(config, checkpointing=False)),
        activations_with_checkpointing=sum(activation_bytes(config, checkpointing=True)),
        fp32_scores_per_layer=fp32_score_bytes(config),
        buffers=choose_buffers(config.model, config.engine, world_size),
        communication=communication_per_step(config, world_size),
        flops_per_step=flops_per_step,
        tflops_per_rank=reached,
        tflops_assumed=rate is None,
        machine=machine,
        saving=plan_saving(
            config,
            world_size,
            nodes,
            hardware.write_rate,
            hardware.blocked_seconds,
            hardware.node_hours_between_failures,
        ),
        export=parameter_count(config.model).total * FP32_BYTES,
        sources=plan_sources(config),
    )


def _nodes(world_size: int, machine: str | None) -> int:
    """That so many ranks fill. Raises ConfigError for a part of a machine."""
    if machine is None:
        return math.ceil(world_size / ASSUMED_RANKS_PER_NODE)
    gpus = machine_named(machine).gpus
    if world_size % gpus:
        raise ConfigError(f"--machine {machine}: {world_size} ranks do not fill nodes of {gpus} GPUs")
    return world_size // gpus
