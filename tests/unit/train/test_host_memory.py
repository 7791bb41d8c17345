"""What is left of the memory, where a job has only a part of the machine's."""

import os
from pathlib import Path

import pytest

from deberta_scale.train.host_memory import available_memory

GIB = 2**30


def machine(root: Path, available: int, cgroup: str, files: dict[str, str]) -> Path:
    """A machine's `/proc` and `/sys`, as far as they are read."""
    for name, text in {
        "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:  {available // 1024} kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_this_machine_has_some_but_less_than_all() -> None:
    assert 0 < available_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_limit_of_a_job_counts_wherever_above_the_process_it_is_set(tmp_path: Path) -> None:
    files = {
        "slurm/job_7/memory.max": str(8 * GIB),
        "slurm/job_7/memory.current": str(5 * GIB),
        "slurm/job_7/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 77\n",
        "slurm/job_7/step_0/memory.max": "max",
        "slurm/job_7/step_0/memory.current": "1",
        "slurm/job_7/step_0/memory.stat": "inactive_file 0\n",
    }
    root = machine(tmp_path, 100 * GIB, "0::/slurm/job_7/step_0\n", files)
    assert available_memory(root) == 4 * GIB


def test_limits_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": str(6 * GIB),
        "memory/job/memory.usage_in_bytes": str(4 * GIB),
        "memory/job/memory.stat": "inactive_file 5\ntotal_inactive_file 0\n",
    }
    root = machine(tmp_path, 100 * GIB, "9:cpuset:/\n4:memory:/job\n", files)
    assert available_memory(root) == 2 * GIB


@pytest.mark.parametrize("cgroup", ["0::/\n", "0::/somewhere/else\n"])
def test_without_a_limit_the_machine_counts(tmp_path: Path, cgroup: str) -> None:
    assert available_memory(machine(tmp_path, 3 * GIB, cgroup, {})) == 3 * GIB
