"""Global sample number → (epoch, row), computed, never stored: any place of the run is reached at once.

Each epoch has its own order, a four-round Feistel network over the smallest even number of bits that holds the rows;
numbers that fall outside are sent through again (cycle walking), so the order is a bijection for every number of rows.
"""

import numba
import numpy as np

from deberta_scale.data.hashing import key_of, mix

_ROUNDS = 4


@numba.njit(cache=True, nogil=True)
def rows_of(
    sources: np.ndarray, numbers: np.ndarray, num_rows: np.ndarray, seeds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """(epochs, rows) [n] int64 of sample numbers[i] of source sources[i]; `num_rows` and `seeds` [S] are by source.
    Each epoch reads every row once."""
    epochs, rows = np.empty_like(numbers), np.empty_like(numbers)
    for index in range(len(numbers)):
        size, seed = num_rows[sources[index]], seeds[sources[index]]
        epochs[index], place = divmod(numbers[index], size)
        rows[index] = permuted(place, size, seed, epochs[index])
    return epochs, rows


@numba.njit(cache=True, nogil=True)
def permuted(place: int, size: int, seed: int, epoch: int) -> np.int64:  # pragma: no cover - compiled
    """Where the bijection of [0, size) that belongs to (seed, epoch) sends `place`."""
    key = key_of(seed, epoch, size)
    half_bits = 1
    while (1 << (2 * half_bits)) < size:
        half_bits += 1
    half_mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    value = np.uint64(place)
    while True:
        left, right = value >> shift, value & half_mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(key + np.uint64(number))) & half_mask)
        value = (left << shift) | right
        if value < np.uint64(size):
            return np.int64(value)
