"""Disks that can be made full, and empty again, while a run is writing on them."""

import contextlib
import os
import resource
from pathlib import Path
from typing import Protocol

from tests.soak.running import Ranks

_LARGEST_FILE_BYTES = 100_000
"""Where no disk can be mounted: less than a rank's file of a checkpoint, more than the log's."""


class Disk(Protocol):
    def fill(self, ranks: Ranks) -> None: ...

    def empty(self, ranks: Ranks) -> None: ...


class SmallDisk:
    """A file system of its own at `directory`."""

    def __init__(self, directory: Path) -> None:
        self._ballast = directory / "ballast"

    def fill(self, ranks: Ranks) -> None:
        """To the last byte."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def empty(self, ranks: Ranks) -> None:
        self._ballast.unlink()


class LargeDisk:
    """Of which the ranks may have no more than small files, for a while."""

    def fill(self, ranks: Ranks) -> None:
        self._limit(ranks, _LARGEST_FILE_BYTES)

    def empty(self, ranks: Ranks) -> None:
        self._limit(ranks, None)

    def _limit(self, ranks: Ranks, num_bytes: int | None) -> None:
        for pid in ranks.pids:
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if num_bytes is None else num_bytes, hard))


def disk_at(directory: Path) -> Disk:
    """The file system mounted there or, where there is none, a limit on the size of files."""
    return SmallDisk(directory) if os.path.ismount(directory) else LargeDisk()
