"""Which kernel computes attention, and why."""

import sys
from functools import lru_cache
from typing import NamedTuple

import torch

from deberta_scale.kernels import cpu, cpu_build, reference, skew
from deberta_scale.kernels.signature import AttentionKernel


class Choice(NamedTuple):
    name: str
    attention: AttentionKernel
    why: str


def choose(device: torch.device, dtype: torch.dtype, all_places_ask: bool) -> Choice:
    """The fastest kernel for tensors on `device` of `dtype`. Every kernel does dropout, packed rows and some queries,
    so none of them decides; `all_places_ask` is False in the mask decoder.

    The first call on a CPU builds the compiled kernel where that has not been done. A fallback from it is told once, on
    the error stream.
    """
    if device.type != "cpu":
        return Choice("reference", reference.attention, f"there is no other kernel for {device.type} devices")
    reason = cpu_build.why_not(dtype)
    if reason is None:
        return Choice("cpu", cpu.attention, "the processor has what the compiled kernel needs")
    _tell(reason)
    if all_places_ask:
        return Choice("skew", skew.attention, reason)
    # the blocks of skew are of all places, of which most would ask for nothing
    return Choice("reference", reference.attention, reason)


@lru_cache
def _tell(reason: str) -> None:
    print(f"attention runs in torch operations, several times slower: {reason}", file=sys.stderr, flush=True)
