"""How fast a named machine would train, and whether the run fits it. Imports no torch.

Published numbers, per GPU and per node of 8:

- V100 SXM2: NVIDIA's data sheet (2020): 125 TFLOP/s fp16, 15.7 fp32, NVLink 300 GB/s both ways together. Node: AWS
  p3dn.24xlarge, 100 Gb/s, 768 GiB of memory.
- A100 SXM: NVIDIA's data sheet (2021): 312 TFLOP/s fp16/bf16, 19.5 fp32, NVLink 600 GB/s. Nodes: AWS p4d.24xlarge
  (40 GB GPUs) and p4de.24xlarge (80 GB), 400 Gb/s EFA, 1,152 GiB; NVIDIA DGX A100: 8 x 200 Gb/s InfiniBand, 1 or 2 TB.
- H100 SXM: NVIDIA's data sheet (2023): 989 TFLOP/s fp16/bf16 without sparsity, 67 fp32, NVLink 900 GB/s. Nodes: AWS
  p5.48xlarge, 3,200 Gb/s EFA, 2 TiB; NVIDIA DGX H100: 8 x 400 Gb/s InfiniBand, 2 TB.

The model, with its assumptions:

    compute        = FLOPs of a rank's part of a step x (4/3 with activation checkpointing) / (peak x EFFICIENCY)
    communication  = bytes that leave a rank / (link x LINK_EFFICIENCY); link: what a GPU sends by NVLink, or what the
                     node sends by its network if that is less: each ring passes through every node once
    step           = compute + communication - hidden; hidden = the least of OVERLAP x communication and of compute,
                     where the engine computes while it communicates, else 0
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from deberta_scale.config import Config, ConfigError
from deberta_scale.plan_communication import communication_per_step
from deberta_scale.plan_memory import memory_per_rank

GPUS_PER_NODE = 8
EFFICIENCY = 0.30
"""Assumed share of the peak that a rank reaches while it computes; not measured for this model. The relative terms of
the attention, in fp32 in the reference attention, weigh on it. Give a measured rate instead when there is one."""
LINK_EFFICIENCY = 0.75
"""Assumed share of a link's rate that collectives reach."""
OVERLAP = 0.5
"""Assumed share of the communication that can be hidden behind computing."""
RECOMPUTATION = 4 / 3
"""Forward is a third of forward and backward, and done once more."""
RUNTIME_BYTES = 2_000_000_000
"""Assumed for the driver's context, NCCL, and work spaces of libraries on each GPU."""
USABLE = 0.95
"""Assumed share of a device's memory that can be used before fragmentation makes an allocation fail."""


@dataclass(frozen=True)
class Machine:
    """A node of 8 GPUs."""

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
        "v100-32": Machine(125.0, 15.7, 32 * 2**30, 150e9, 100.0, 768 * 2**30, has_bf16=False),
        "a100-40": Machine(312.0, 19.5, 40 * 2**30, 300e9, 400.0, 1152 * 2**30),
        "a100-80": Machine(312.0, 19.5, 80 * 2**30, 300e9, 400.0, 1152 * 2**30),
        "a100-80-infiniband": Machine(312.0, 19.5, 80 * 2**30, 300e9, 1600.0, 2e12),
        "h100": Machine(989.0, 67.0, 80 * 2**30, 450e9, 3200.0, 2048 * 2**30),
    }
)


@dataclass(frozen=True)
class MachinePlan:
    machine: str
    nodes: int
    network_gbit: float
    """Of a node."""
    peak_tflops: float
    """Of a GPU, in the run's precision."""
    efficiency: float
    """Share of it that is reached while computing: assumed, or the measured rate."""
    compute_seconds: float
    """Of a step, recomputation included."""
    communication_seconds: float
    hidden_seconds: float
    """Of the communication."""
    tokens_per_second: float
    """Token places, over all ranks."""
    days: float
    device_bytes: float
    """That a GPU has."""
    device_needed: float
    """With the runtime's own."""
    host_bytes: float
    """That a node has."""
    host_needed: float
    """By the ranks of a node: offloaded states, and the copies that checkpoints are written from."""
    what_would_fit: str | None
    """What to change when it does not fit; None when it does."""

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds - self.hidden_seconds


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

    Raises ConfigError for an unknown machine, a precision it has no units for, or a rate above its peak.
    """
    machine = machine_named(name)
    world_size, peak = nodes * GPUS_PER_NODE, _peak(config, name, machine)
    gbit = machine.network_gbit if network_gbit is None else network_gbit
    if not gbit > 0.0:
        raise ConfigError(f"--network-gbit {gbit:g}: give a positive number, for instance {machine.network_gbit:g}")
    recomputation = RECOMPUTATION if config.engine.activation_checkpointing != "none" else 1.0
    efficiency = EFFICIENCY if tflops_per_rank is None else tflops_per_rank * recomputation / peak
    if efficiency > 1.0:
        raise ConfigError(f"--tflops-per-rank {tflops_per_rank:g}: {name} has a peak of {peak:g} TFLOP/s")
    compute = flops_per_step / world_size * recomputation / (peak * 1e12 * efficiency)
    sent = communication_per_step(config, world_size)
    network = gbit / 8 * 1e9 if nodes > 1 else machine.link
    seconds = sent.between_machines / min(machine.link, network) + (sent.total - sent.between_machines) / machine.link
    seconds /= LINK_EFFICIENCY
    hidden = min(OVERLAP * seconds, compute) if sent.overlaps else 0.0
    step = compute + seconds - hidden
    return MachinePlan(
        machine=name,
        nodes=nodes,
        network_gbit=gbit,
        peak_tflops=peak,
        efficiency=efficiency,
        compute_seconds=compute,
        communication_seconds=seconds,
        hidden_seconds=hidden,
        tokens_per_second=config.tokens_per_step / step,
        days=step * config.train.steps / 86400,
        device_bytes=machine.device_bytes,
        device_needed=memory_per_rank(config, world_size).device_peak + RUNTIME_BYTES,
        host_bytes=machine.host_bytes,
        host_needed=GPUS_PER_NODE * memory_per_rank(config, world_size).host_peak,
        what_would_fit=None if fits(config, machine, world_size) else _what_would_fit(config, machine, world_size),
    )


def fits(config: Config, machine: Machine, world_size: int) -> bool:
    """Whether a rank's part fits a GPU, and the node's ranks fit its host; a copy for a checkpoint that does not fit
    is done without."""
    memory = memory_per_rank(config, world_size)
    on_device = memory.device_peak + RUNTIME_BYTES <= USABLE * machine.device_bytes
    return on_device and GPUS_PER_NODE * memory.host <= USABLE * machine.host_bytes


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
    wanted: dict[str, Any] = {}
    for key, value in [
        ("activation_checkpointing", "non_reentrant"),
        ("zero_stage", 3),
        ("offload_optimizer", "cpu"),
        ("offload_parameters", "cpu"),
    ]:
        if not wanted:
            yield from ({"batch": {"micro_sequences": n}} for n in smaller)
        if getattr(engine, key) in ("none", 0, 1, 2):
            wanted = wanted | {key: value}
            yield {"engine": wanted}
            yield from ({"engine": wanted, "batch": {"micro_sequences": n}} for n in smaller)


def _peak(config: Config, name: str, machine: Machine) -> float:
    if config.engine.precision == "bf16" and not machine.has_bf16:
        raise ConfigError(f"--machine {name}: it has no units for bf16; use engine.precision=fp16")
    return machine.tflops_fp32 if config.engine.precision == "fp32" else machine.tflops_16_bit
