"""Global sample number → (source, how many samples of that source came before), computed and never stored.

The run is cut into blocks of BLOCK samples. Of each source a block holds its weight times BLOCK samples, rounded down
or up, in turn, so that after every `period` blocks the shares are exact: laid end to end on a line of BLOCK places the
weights are intervals; shifted by a part of a place, another one in each block of a period, each interval holds as many
whole places as its source has samples. Inside a block the order is a seeded bijection. A phase with other weights
begins at its own sample with a block of its own; the last block before it is shorter, and rounded in the same way. So
each sample of each source is read once before any is read again.
Shape letters: S sources, P phases.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numba
import numpy as np

from deberta_scale.config import ConfigError, MixtureConfig
from deberta_scale.data.sampling import permuted

BLOCK = 1024
LONGEST_PERIOD = 4096
"""Blocks. Weights whose exact shares need a longer period are rounded to 1 / (BLOCK * LONGEST_PERIOD)."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_PHASE_SHIFT = 40
"""Blocks of a phase are numbered below 2**40 where the key of their order is made."""


class _Tables(NamedTuple):
    """What the compiled part reads."""

    first_sample: np.ndarray
    """[P + 1] int64: of each phase; then the end, which no sample reaches."""
    period: np.ndarray
    """[P] int64, in blocks."""
    stride: np.ndarray
    """[P] int64: how far the shift moves from block to block, in 1 / period of a place."""
    borders: np.ndarray
    """[P, S + 1] int64: ends of the sources' intervals, in 1 / period of a place."""
    before_phase: np.ndarray
    """[P, S] int64: samples of each source before the phase."""
    before_block: np.ndarray
    """[P, longest period, S] int64: samples of each source in the blocks of a period before this one."""


class Mixture:
    """The order in which a run reads its sources. A pure function of weights, phases, batch size and seed."""

    def __init__(self, config: MixtureConfig, sequences_per_step: int, seed: int) -> None:
        """Raises ConfigError for a weight so small that its source would never be read."""
        self.names = sorted(config.sources)
        """In the order of their numbers: whoever writes the config in another order means the same mixture."""
        self._seed = seed
        phases = config.weights_by_step()
        periods, borders = zip(*(_borders(self.names, weights, step) for step, weights in phases), strict=True)
        tables = _Tables(
            first_sample=np.array([step * sequences_per_step for step, _ in phases] + [2**62]),
            period=np.array(periods),
            stride=np.array([_stride(period) for period in periods]),
            borders=np.array(borders),
            before_phase=np.zeros((len(phases), len(self.names)), np.int64),
            before_block=np.zeros((len(phases), max(periods), len(self.names)), np.int64),
        )
        for phase, period in enumerate(periods):
            for block in range(1, period):
                counts = _counts(tables, phase, block - 1, BLOCK)
                tables.before_block[phase, block] = tables.before_block[phase, block - 1] + counts
            if phase:
                before = _before_in_phase(tables, phase - 1, tables.first_sample[phase])
                tables.before_phase[phase] = tables.before_phase[phase - 1] + before
        self._tables = tables

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, number inside the source) [n] int64 of each global sample number [n] int64."""
        return _locate(self._tables, self._seed, samples)

    def read_before(self, sample: int) -> np.ndarray:
        """[S] int64: samples of each source among the first `sample` of the run."""
        first = self._tables.first_sample
        phase = int(np.searchsorted(first, sample, side="right")) - 1
        whole = sample - (sample - int(first[phase])) % BLOCK
        counts = self._tables.before_phase[phase] + _before_in_phase(self._tables, phase, whole)
        sources, _ = self.locate(np.arange(whole, sample))
        return counts + np.bincount(sources, minlength=len(self.names))


def _borders(names: list[str], weights: dict[str, float], step: int) -> tuple[int, list[int]]:
    """(period, [S + 1] ends of the intervals in 1 / period of a place) of a phase."""
    exact = [Fraction(str(weights[name])) for name in names]  # 0.1 is a tenth, not the nearest double
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*((share * BLOCK).denominator for share in shares))
    period = min(period, LONGEST_PERIOD)
    borders = [0]
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        borders.append(round(sum(shares[: number + 1]) * BLOCK * period))
        if share and borders[-1] == borders[-2]:
            raise ConfigError(
                f"data.mixture: from step {step} on source {name!r} has the weight {weights[name]:g}, a share of"
                f" {float(share):.1e}, and would never be read; give it {1 / (BLOCK * period):.1e} or more of all"
                " weights, or 0"
            )
    return period, borders


def _stride(period: int) -> int:
    """Without a divisor in common with the period, so that every shift comes once; near the golden ratio, so that any
    stretch of blocks has shifts far apart."""
    stride = max(1, round(period * _GOLDEN))
    while math.gcd(stride, period) > 1:
        stride += 1
    return stride


@numba.njit(cache=True, nogil=True)
def _border(tables: _Tables, phase: int, block: int, source: int, size: int) -> int:  # pragma: no cover - compiled
    """Where in a block of `size` places, before it is put into its order, the source after `source` - 1 begins."""
    period = tables.period[phase]
    shift = (block % period) * tables.stride[phase] % period
    return -((shift * BLOCK - tables.borders[phase, source] * size) // (period * BLOCK))  # rounded up


@numba.njit(cache=True, nogil=True)
def _counts(tables: _Tables, phase: int, block: int, size: int) -> np.ndarray:  # pragma: no cover - compiled
    """[S] int64: samples of each source in a block of `size` samples."""
    num_sources = tables.borders.shape[1] - 1
    counts = np.empty(num_sources, np.int64)
    for source in range(num_sources):
        counts[source] = _border(tables, phase, block, source + 1, size) - _border(tables, phase, block, source, size)
    return counts


@numba.njit(cache=True, nogil=True)
def _before_in_phase(tables: _Tables, phase: int, sample: int) -> np.ndarray:  # pragma: no cover - compiled
    """[S] int64: samples of each source from the phase's beginning to `sample`, the end of one of its blocks."""
    blocks, rest = divmod(sample - tables.first_sample[phase], BLOCK)
    counts = _before_block(tables, phase, blocks)
    if rest:
        counts += _counts(tables, phase, blocks, rest)
    return counts


@numba.njit(cache=True, nogil=True)
def _before_block(tables: _Tables, phase: int, block: int) -> np.ndarray:  # pragma: no cover - compiled
    periods, rest = divmod(block, tables.period[phase])
    in_a_period = tables.borders[phase, 1:] - tables.borders[phase, :-1]
    return periods * in_a_period + tables.before_block[phase, rest]


@numba.njit(cache=True, nogil=True)
def _locate(
    tables: _Tables, seed: int, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    sources, numbers = np.empty_like(samples), np.empty_like(samples)
    for index in range(len(samples)):
        sample = samples[index]
        phase = np.searchsorted(tables.first_sample, sample, side="right") - 1
        block, place = divmod(sample - tables.first_sample[phase], BLOCK)
        left_in_phase = tables.first_sample[phase + 1] - tables.first_sample[phase] - block * BLOCK
        size = min(BLOCK, left_in_phase)
        place = permuted(place, size, seed, (phase << _PHASE_SHIFT) + block)
        source, begin, end = 0, 0, _border(tables, phase, block, 1, size)
        while place >= end:
            source, begin = source + 1, end
            end = _border(tables, phase, block, source + 1, size)
        sources[index] = source
        before = tables.before_phase[phase, source] + _before_block(tables, phase, block)[source]
        numbers[index] = before + place - begin
    return sources, numbers
