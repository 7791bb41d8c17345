"""Who am I among how many: rank and peers from the launcher's environment, and the few collectives the loop needs."""

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed

Result = TypeVar("Result")


class LaunchError(ValueError):
    """The environment does not say clearly who takes part in the run."""


@dataclass(frozen=True)
class Launch:
    """The place of this process in the run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    source: str
    """What told us: `launcher` (deepspeed, torchrun) or `single process`."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


_OTHER_LAUNCHERS = {"SLURM_NTASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Find rank and world size in the environment of a process.

    Raises LaunchError when several processes were started but not told apart, since each would then train alone
    and overwrite the others.
    """
    if "RANK" in environment:
        missing = [
            name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment
        ]
        if missing:
            raise LaunchError(f"RANK is set but {', '.join(missing)} is not; start with `deepspeed` or `torchrun`")
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        if not 0 <= rank < world_size:
            raise LaunchError(f"RANK {rank} is outside 0..{world_size - 1} (WORLD_SIZE {world_size})")
        local_world_size = int(environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", world_size)))
        return Launch(rank, world_size, int(environment["LOCAL_RANK"]), local_world_size, "launcher")
    for name, program in _OTHER_LAUNCHERS.items():
        if int(environment.get(name, "1")) > 1:
            raise LaunchError(
                f"{name} is {environment[name]} but RANK is not set: {program} alone would start that many runs of one"
                " process each. Start one `deepspeed launch/pretrain.py ...` or `torchrun` on each node instead"
            )
    return Launch(0, 1, 0, 1, "single process")


def announce_single_process() -> None:
    """Give a process without launcher the variables that the process group reads, on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def set_threads(launch: Launch) -> int:
    """Share the cores among the ranks of this machine, unless OMP_NUM_THREADS was set to something on purpose."""
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // launch.local_world_size))
    return torch.get_num_threads()


class _Control:
    """A process group over the CPU for the few numbers ranks agree on, so that agreeing never waits for a GPU."""

    group: torch.distributed.ProcessGroup | None = None


def open_control_group() -> None:
    """Call once after the process group has started, on every rank."""
    on_cpu = torch.distributed.get_backend() == "gloo"
    _Control.group = None if on_cpu else torch.distributed.new_group(backend="gloo")


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sum over all ranks, in float64: exact for integers below 2**53."""
    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total, group=_Control.group)
    return total.tolist()


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, by rank. For small things such as file sizes, never for tensors."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=_Control.group)
    return values


def first_given(value: Result | None) -> Result | None:
    """The value of the lowest rank that has one, on every rank; None when no rank has, which costs one number."""
    (num_given,) = sum_over_ranks([value is not None])
    return next(v for v in gather_objects(value) if v is not None) if num_given else None


def barrier() -> None:
    gather_objects(None)


def together(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank; when it fails on some, raise ValueError on all, so that none waits for ever."""
    result: Result | None = None
    message: str | None = None
    try:
        result = action()
    except (ValueError, OSError) as error:
        message = str(error)
    messages = [m for m in gather_objects(message) if m is not None]
    if messages:
        raise ValueError("\n".join(dict.fromkeys(messages)))
    return cast(Result, result)


def on_main(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 only and give its result to every rank; when it raises ValueError, all ranks do."""
    is_main = torch.distributed.get_rank() == 0
    return cast(Result, gather_objects(together(action if is_main else lambda: None))[0])


def close() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process at once, without Python's shutdown: a thread of gloo that frees a tensor during it aborts the
    process, and a run that had finished would end with signal 6 (seen in 3 of 80 runs)."""
    close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
