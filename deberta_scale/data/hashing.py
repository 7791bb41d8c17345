"""Counter-based randomness: the same key gives the same numbers, in whatever order and on whatever machine.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", 2014).
"""

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@numba.njit(cache=True)
def mix(value: np.uint64) -> np.uint64:  # pragma: no cover - compiled
    """A bijection of 64-bit numbers in which every input bit reaches every output bit."""
    value = np.uint64(value) + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True)
def key_of(first: int, second: int, third: int) -> np.uint64:  # pragma: no cover - compiled
    """One 64-bit key from three numbers; their order matters."""
    return mix(mix(mix(np.uint64(first)) ^ np.uint64(second)) ^ np.uint64(third))


@numba.njit(cache=True)
def below(bits: np.uint64, bound: int) -> np.int64:  # pragma: no cover - compiled
    """A number in [0, bound) from 64 random bits, for bound < 2**32; the bias is below 2**-32."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@numba.njit(cache=True)
def unit(bits: np.uint64) -> np.float64:  # pragma: no cover - compiled
    """A number in [0, 1) from 64 random bits."""
    return np.float64(bits >> np.uint64(11)) * 2.0**-53
