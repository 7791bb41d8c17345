"""The directory that `engine.offload_optimizer disk` writes to: whose it is, and whether it is large enough."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

from deberta_scale.config import ConfigError
from deberta_scale.train.buffers import SWAPPED_BYTES_PER_PARAMETER

_held: dict[tuple[Path, int], IO[str]] = {}
"""Locks of this process, which end with it."""


def claim(directory: Path, rank: int, num_parameters: int, ranks_here: int) -> None:
    """Make the directory this run's own, as far as `rank` is concerned, and check that the disk has the room.

    Files that a run left there which has ended are removed. `num_parameters` is a rank's share; `ranks_here` share the
    disk. Raises ConfigError naming the directory when it cannot be made, is used by another run, or is too small.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _lock(directory, rank)
        shutil.rmtree(_files_of(directory, rank), ignore_errors=True)
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise ConfigError(f"engine.offload_directory {directory} cannot be used: {error.strerror}") from None
    needed = SWAPPED_BYTES_PER_PARAMETER * num_parameters * ranks_here
    if free < needed:
        raise ConfigError(
            f"engine.offload_directory {directory}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            f" ({ranks_here} rank(s) here, each of {num_parameters:,} parameters, {SWAPPED_BYTES_PER_PARAMETER} bytes a"
            " parameter); give a directory of a larger disk, or more machines"
        )


def release_all() -> None:
    """Remove the files of this process; they are of no use without it. What a killed one leaves, the next removes."""
    for directory, rank in list(_held):
        shutil.rmtree(_files_of(directory, rank), ignore_errors=True)
        _held.pop((directory, rank)).close()


def _files_of(directory: Path, rank: int) -> Path:
    """Where DeepSpeed puts them."""
    return directory / "zero_stage_3" / "optimizer" / f"rank{rank}"


def _lock(directory: Path, rank: int) -> None:
    file = (directory / f"rank-{rank:05d}.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ConfigError(
            f"engine.offload_directory {directory} is used by another run (process {owner}); give each run its own"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _held[directory, rank] = file
