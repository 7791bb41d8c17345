"""Whether freed memory stays with the process, seen from outside."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
from deberta_scale.train import allocator

def resident_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

getattr(allocator, sys.argv[1])()
before = resident_mib()
blocks = [torch.ones(25_000) for _ in range(2000)] + [torch.ones(25_000_000)]  # 100 kB each, and 100 MB
allocated = resident_mib()
last = blocks[1999]  # lies above the others, so that the heap cannot shrink
del blocks
print(allocated - before, resident_mib() - before)
"""


def resident_after(choice: str, **environment: str) -> tuple[float, float]:
    """MiB above the start with 286 MiB of tensors, and when they are freed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = [sys.executable, "-c", PROGRAM, choice]
    output = subprocess.run(program, env=clean | environment, capture_output=True, text=True, check=True).stdout
    allocated, kept = map(float, output.split())
    return allocated, kept


def test_freed_memory_is_kept_for_speed() -> None:
    allocated, kept = resident_after("keep_freed_memory")
    assert allocated > 250 and kept > 0.9 * allocated


def test_freed_memory_is_returned_where_it_is_short() -> None:
    allocated, kept = resident_after("return_freed_memory")
    assert allocated > 250 and kept < 0.1 * allocated


@pytest.mark.parametrize("name", ["MALLOC_TOP_PAD_", "GLIBC_TUNABLES"])
def test_what_the_user_chose_stays(name: str) -> None:
    value = "131072" if name == "MALLOC_TOP_PAD_" else "glibc.malloc.top_pad=131072"
    _, kept = resident_after("return_freed_memory", **{name: value})
    assert kept > 100, "the small blocks stay, as glibc does by itself"
