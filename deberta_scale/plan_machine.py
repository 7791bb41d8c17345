"""How fast a named machine would train, and whether the run fits it. Imports no torch.

Published numbers, per GPU and per node:

- V100 SXM2: NVIDIA's data sheet (2020): 32 GB, 125 TFLOP/s fp16, 15.7 fp32, NVLink 300 GB/s both ways together. Node:
  AWS p3dn.24xlarge, 8 GPUs, 100 Gb/s, 768 GiB of memory.
- A100 SXM: NVIDIA's data sheet (2021): 40 or 80 GB, 312 TFLOP/s fp16/bf16, 19.5 fp32, NVLink 600 GB/s. Nodes of 8: AWS
  p4d.24xlarge (40 GB GPUs) and p4de.24xlarge (80 GB), 400 Gb/s EFA, 1,152 GiB; NVIDIA DGX A100: 8 x 200 Gb/s
  InfiniBand, 2 TB.
- H100 SXM: NVIDIA's data sheet (2023): 80 GB, 989 TFLOP/s fp16/bf16 without sparsity, 67 fp32, NVLink 900 GB/s. Node of
  8: AWS p5.48xlarge, 3,200 Gb/s EFA, 2 TiB.

The GB of a GPU's memory are 2**30 bytes, as memory is built; GB/s, Gb/s and TB are powers of ten. Everything is held
and printed in bytes, GB = 1e9 of them.

The model; what it is called a judgement below comes from no source and was not measured for this model:

    compute        = FLOPs of a rank's part of a step x (4/3 with activation checkpointing) / (peak x EFFICIENCY)
    communication  = bytes that leave a rank / (link x LINK_EFFICIENCY); link: what a GPU sends by NVLink, or what the
                     node sends by its network if that is less: each ring passes through every node once
    step           = compute + communication - hidden; hidden = the least of OVERLAP x communication and of compute,
                     where the engine computes while it communicates, else 0

A rate that was measured replaces all three: communication, too, took its time when it was measured.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from deberta_scale.config import Config, ConfigError
from deberta_scale.plan_communication import communication_per_step
from deberta_scale.plan_memory import memory_per_rank

EFFICIENCY = 0.30
"""A judgement: the share of the peak that a rank reaches while it computes. The relative terms of the attention, in
fp32 in the reference attention, weigh on it. Give a measured rate instead when there is one."""
LINK_EFFICIENCY = 0.75
"""A judgement: the share of a link's rate that collectives reach."""
OVERLAP = 0.5
"""A judgement: the share of the communication that can be hidden behind computing."""
RECOMPUTATION = 4 / 3
"""Forward is a third of forward and backward, and done once more."""
RUNTIME_BYTES = 2_000_000_000
"""A judgement: for the driver's context, NCCL, and work spaces of libraries on each GPU."""
USABLE = 0.95
"""A judgement: the share of a memory that can be used before fragmentation makes an allocation fail."""
_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """A node."""

    gpus: int
    tflops_16_bit: float
    tflops_fp32: float
    device_bytes: float
    link: float
    """Bytes a second that a GPU sends to others of its node."""
    network_gbit: float
    """Gbit a second that the node sends to others."""
    host_bytes: float
    has_bf16: bool = True


MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        "v100-32": Machine(8, 125.0, 15.7, 32 * _GIB, 150e9, 100.0, 768 * _GIB, has_bf16=False),
        "a100-40": Machine(8, 312.0, 19.5, 40 * _GIB, 300e9, 400.0, 1152 * _GIB),
        "a100-80": Machine(8, 312.0, 19.5, 80 * _GIB, 300e9, 400.0, 1152 * _GIB),
        "a100-80-infiniband": Machine(8, 312.0, 19.5, 80 * _GIB, 300e9, 1600.0, 2e12),
        "h100": Machine(8, 989.0, 67.0, 80 * _GIB, 450e9, 3200.0, 2048 * _GIB),
    }
)


@dataclass(frozen=True)
class StepModel:
    """What a step takes by the model above."""

    efficiency: float
    """Share of the peak that is reached while computing."""
    compute_seconds: float
    """Recomputation included."""
    network_gbit: float
    """Of a node."""
    link_efficiency: float
    communication_seconds: float
    most_hidden: float
    """Share of the communication."""
    hidden_seconds: float
    """Of the communication."""

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds - self.hidden_seconds


@dataclass(frozen=True)
class MachinePlan:
    machine: str
    nodes: int
    gpus_per_node: int
    peak_tflops: float
    """Of a GPU, in the run's precision."""
    model: StepModel | None
    """None when a measured rate was given."""
    device_bytes: float
    """That a GPU has."""
    device_usable: float
    device_needed: float
    """With the runtime's own."""
    runtime_bytes: float
    host_bytes: float
    """That a node has."""
    host_usable: float
    host_needed: float
    """By the ranks of a node, for what is offloaded."""
    host_copies: float
    """Besides, for the copies that checkpoints are written from, if there is room."""
    what_would_fit: str | None
    """What to change when it does not fit; None when it does."""


def machine_named(name: str) -> Machine:
    """Raises ConfigError naming those that are known."""
    if name not in MACHINES:
        raise ConfigError(f"--machine {name}: known are {', '.join(MACHINES)}")
    return MACHINES[name]


def plan_machine(
    config: Config,
    name: str,
    nodes: int,
    flops_per_step: float,
    network_gbit: float | None = None,
    tflops_per_rank: float | None = None,
) -> MachinePlan:
    """`flops_per_step` over all ranks, recomputation not counted; `tflops_per_rank` is a measured rate in these FLOPs.

    Raises ConfigError for an unknown machine, a precision it has no units for, a rate above its peak, or a network that
    nothing is sent through or that makes no sense.
    """
    machine = machine_named(name)
    peak = _peak(config, name, machine)
    _check_network(network_gbit, nodes, tflops_per_rank, machine)
    model = None
    if tflops_per_rank is None:
        model = _model_step(config, machine, nodes, peak, flops_per_step, network_gbit or machine.network_gbit)
    elif tflops_per_rank * _recomputation(config) > peak:
        raise ConfigError(f"--tflops-per-rank {tflops_per_rank:g}: {name} has a peak of {peak:g} TFLOP/s")
    world_size = nodes * machine.gpus
    device_needed, host_needed = _needs(config, machine, world_size)
    return MachinePlan(
        machine=name,
        nodes=nodes,
        gpus_per_node=machine.gpus,
        peak_tflops=peak,
        model=model,
        device_bytes=machine.device_bytes,
        device_usable=USABLE * machine.device_bytes,
        device_needed=device_needed,
        runtime_bytes=RUNTIME_BYTES,
        host_bytes=machine.host_bytes,
        host_usable=USABLE * machine.host_bytes,
        host_needed=host_needed,
        host_copies=machine.gpus * memory_per_rank(config, world_size).save_copy,
        what_would_fit=None if fits(config, machine, world_size) else _what_would_fit(config, machine, world_size),
    )


def fits(config: Config, machine: Machine, world_size: int) -> bool:
    """Whether a rank's part fits a GPU, and the node's ranks fit its host; a copy for a checkpoint that does not fit
    is done without."""
    device_needed, host_needed = _needs(config, machine, world_size)
    return device_needed <= USABLE * machine.device_bytes and host_needed <= USABLE * machine.host_bytes


def _needs(config: Config, machine: Machine, world_size: int) -> tuple[float, float]:
    """Bytes of a GPU, and of a node's host."""
    memory = memory_per_rank(config, world_size)
    return memory.device_peak + RUNTIME_BYTES, machine.gpus * memory.host


def _model_step(
    config: Config, machine: Machine, nodes: int, peak: float, flops_per_step: float, network_gbit: float
) -> StepModel:
    world_size = nodes * machine.gpus
    compute = flops_per_step / world_size * _recomputation(config) / (peak * 1e12 * EFFICIENCY)
    sent = communication_per_step(config, world_size)
    network = network_gbit / 8 * 1e9 if nodes > 1 else machine.link
    seconds = sent.between_machines / min(machine.link, network) + (sent.total - sent.between_machines) / machine.link
    seconds /= LINK_EFFICIENCY
    return StepModel(
        efficiency=EFFICIENCY,
        compute_seconds=compute,
        network_gbit=network_gbit,
        link_efficiency=LINK_EFFICIENCY,
        communication_seconds=seconds,
        most_hidden=OVERLAP,
        hidden_seconds=min(OVERLAP * seconds, compute) if sent.overlaps else 0.0,
    )


def _check_network(gbit: float | None, nodes: int, tflops_per_rank: float | None, machine: Machine) -> None:
    if gbit is None:
        return
    if not (gbit > 0.0 and math.isfinite(gbit)):
        raise ConfigError(f"--network-gbit {gbit:g}: give a positive number, for instance {machine.network_gbit:g}")
    if nodes == 1:
        raise ConfigError("--network-gbit has no effect on 1 node, which sends nothing to others; give --nodes as well")
    if tflops_per_rank is not None:
        raise ConfigError("--network-gbit has no effect with --tflops-per-rank: a measured rate contains communication")


def _recomputation(config: Config) -> float:
    return RECOMPUTATION if config.engine.activation_checkpointing != "none" else 1.0


def _what_would_fit(config: Config, machine: Machine, world_size: int) -> str:
    """The first of `_changes` that is enough, in words."""
    for changes in _changes(config, world_size):
        changed = config.model_copy(
            update={section: getattr(config, section).model_copy(update=values) for section, values in changes.items()}
        )
        if fits(changed, machine, world_size):
            return " ".join(
                f"{section}.{key}={value}" for section, them in changes.items() for key, value in them.items()
            )
    return "nothing of micro-batch, checkpointing, ZeRO stage and offload is enough: more memory per GPU, or more nodes"


def _changes(config: Config, world_size: int) -> Iterator[dict[str, dict[str, Any]]]:
    """From the cheapest to the slowest: smaller micro-batches, with checkpointing, at stage 3, with offload."""
    rows, engine = config.batch.micro_sequences, config.engine
    smaller = [n for n in range(rows - 1, 0, -1) if config.batch.sequences % (n * world_size) == 0]
    yield from ({"batch": {"micro_sequences": n}} for n in smaller)
    wanted: dict[str, Any] = {}
    for key, value in [
        ("activation_checkpointing", "non_reentrant"),
        ("zero_stage", 3),
        ("offload_optimizer", "cpu"),
        ("offload_parameters", "cpu"),
    ]:
        if getattr(engine, key) in ("none", 0, 1, 2):
            wanted = wanted | {key: value}
            yield {"engine": wanted}
            yield from ({"engine": wanted, "batch": {"micro_sequences": n}} for n in smaller)


def _peak(config: Config, name: str, machine: Machine) -> float:
    if config.engine.precision == "bf16" and not machine.has_bf16:
        raise ConfigError(f"--machine {name}: it has no units for bf16; use engine.precision=fp16")
    return machine.tflops_fp32 if config.engine.precision == "fp32" else machine.tflops_16_bit
