"""What glibc does with memory that torch frees on the host, where torch itself keeps none.

By default it maps each large tensor anew, and every first touch of a page costs. Keeping freed memory made training on
a CPU up to twice as fast in measurements; but what is kept for one size fits no other, and a model that only just fits
a machine does not fit it then: construction of the 1.5B model took 12.6 GiB without returning memory, 9.1 GiB with.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Numbers of mallopt(3)."""
_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> None:
    """For speed: freed memory is used again and never given back."""
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 256 * 2**20})


def return_freed_memory() -> None:
    """For models that only just fit: freed memory goes back to the system at once."""
    _set({_MMAP_THRESHOLD: 2**16, _TRIM_THRESHOLD: 0})


def _set(values: dict[int, int]) -> None:
    """Unless the user chose otherwise in the environment."""
    if any(name in os.environ for name in (*_BY_USER, "GLIBC_TUNABLES")):
        return
    mallopt = ctypes.CDLL(None).mallopt
    for number, value in values.items():
        assert mallopt(number, value) == 1
