"""Which kernel computes attention, and why."""

import sys
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch

from deberta_scale.kernels import cpu, cpu_build, reference, skew
from deberta_scale.kernels.signature import AttentionKernel

AUTO = "auto"
KERNELS: Mapping[str, AttentionKernel] = MappingProxyType(
    {"cpu": cpu.attention, "skew": skew.attention, "reference": reference.attention}
)

_asked = AUTO


class Choice(NamedTuple):
    name: str
    attention: AttentionKernel
    why: str


def ask_for(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Let all attention of this process be computed by this kernel; AUTO: by the fastest.

    Raises ValueError when it does not run on `device` with `dtype`.
    """
    global _asked  # one process trains one model at a time, and no module should need to know
    if name == "cpu" and (reason := _why_not_compiled(device, dtype)):
        raise ValueError(f"engine.attention cpu: {reason}; use auto, skew or reference")
    _asked = name


def choose(device: torch.device, dtype: torch.dtype, all_places_ask: bool) -> Choice:
    """The kernel that was asked for, or the fastest for tensors on `device` of `dtype`. Every kernel does dropout,
    packed rows and some queries, so none of them decides; `all_places_ask` is False in the mask decoder.

    The first call on a CPU builds the compiled kernel where that has not been done. A fallback from it is told once, on
    the error stream.
    """
    if _asked != AUTO:
        return Choice(_asked, KERNELS[_asked], f"engine.attention is {_asked}")
    reason = _why_not_compiled(device, dtype)
    if reason is None:
        return Choice("cpu", cpu.attention, "the processor has what the compiled kernel needs")
    if device.type != "cpu":
        return Choice("reference", reference.attention, reason)
    _tell(reason)
    if all_places_ask:
        return Choice("skew", skew.attention, reason)
    # the blocks of skew are of all places, of which most would ask for nothing
    return Choice("reference", reference.attention, reason)


def _why_not_compiled(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"there is no compiled kernel for {device.type} devices"
    return cpu_build.why_not(dtype)


@lru_cache
def _tell(reason: str) -> None:
    print(f"attention runs in torch operations, several times slower: {reason}", file=sys.stderr, flush=True)
