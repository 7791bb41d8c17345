"""How much memory of this machine is left to its processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that processes here can still take without swapping, and within the limits of the control groups, of
    version 1 or 2, that this process is in. `root` is where `/proc` and `/sys` are."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return min([int(kibibytes) * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each limit above this process leaves, where there is one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "sys/fs/cgroup/memory", path, *names)


def _left(mounted: Path, path: str, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """Of the group `path` and of each above it. Pages of files that were not used lately are given back on demand."""
    group = mounted / path.lstrip("/")
    for directory in (group, *group.parents):
        if not directory.is_relative_to(mounted):
            return
        with contextlib.suppress(OSError, ValueError):  # no such file at the root; "max" where there is no limit
            most = int((directory / limit).read_text())
            numbers = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
            yield most - int((directory / used).read_text()) + int(numbers.get(reclaimable, 0))
