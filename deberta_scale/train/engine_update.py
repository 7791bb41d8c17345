"""The update at the end of a step: made, or left out so that nothing of the step remains.

DeepSpeed leaves an update out by itself when the gradient overflows in 16 bits: no moment, master or counter of the
optimizer changes, and gradients are dropped. The same way is taken for any other reason: in ZeRO's stages (as of 0.19)
by handing its own step a norm that is infinite; in stage 0, whose optimizer knows no norm, by a step that does nothing.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from deberta_scale.train import distributed


@dataclass(frozen=True)
class Update:
    """What became of it; the same on all ranks."""

    norm: float
    """Of the whole gradient, before clipping; infinite when the gradient is not finite."""
    made: bool
    overflowed: bool = False
    """Left out because the loss scale of fp16 was too large, which is now smaller."""


def update(engine: Any, largest_norm: float) -> Update:
    """The engine's step after the last backward pass of a step, on all ranks together. The update is left out when the
    norm of the gradient is above `largest_norm` or not finite."""
    if engine.zero_optimization_stage() == 0:
        return _update_whole(engine, largest_norm)
    return _update_divided(engine, largest_norm)


def _update_whole(engine: Any, largest_norm: float) -> Update:
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = _agreed(torch.nn.utils.get_total_norm(gradients))
    made = norm <= largest_norm and math.isfinite(norm)
    with contextlib.nullcontext() if made else _replaced(engine.optimizer, "step", lambda: None):
        engine.step()
    return Update(norm, made)


def _update_divided(engine: Any, largest_norm: float) -> Update:
    optimizer, by_sub_group = engine.optimizer, engine.zero_optimization_stage() == 3
    name_of_norm = "_get_norm_groups" if by_sub_group else "scaled_global_norm"
    compute_norm, change_scale = getattr(optimizer, name_of_norm), optimizer._update_scale
    norm, overflowed = math.inf, False

    def compute_judged_norm() -> Any:
        nonlocal norm
        found = compute_norm()
        scaled = _combined(found) if by_sub_group else found
        norm = _agreed(scaled / optimizer.loss_scale)
        if norm <= largest_norm:
            return found
        refused = torch.full_like(scaled, math.inf)
        return [refused] if by_sub_group else refused

    def change_scale_for_overflow(overflow: bool) -> None:
        """An update that we left out says nothing of the scale; one that cannot be smaller is not the cause."""
        nonlocal overflowed
        scaler = optimizer.loss_scaler
        is_ours = largest_norm == -math.inf or math.isfinite(norm)
        overflowed = overflow and not is_ours and scaler.dynamic and scaler.cur_scale > scaler.min_scale
        if overflowed or not overflow:
            change_scale(overflow)

    with (
        _replaced(optimizer, name_of_norm, compute_judged_norm),
        _replaced(optimizer, "_update_scale", change_scale_for_overflow),
    ):
        engine.step()
    return Update(norm, not optimizer.overflow, overflowed)


def weights_are_finite(engine: Any) -> bool:
    """Whether all weights that the model computes with are finite on all ranks; each looks at what it holds."""
    held = map(_held, engine.module.parameters())
    (num_broken,) = distributed.sum_over_ranks([not all(bool(weights.isfinite().all()) for weights in held)])
    return not num_broken


def _held(parameter: Any) -> torch.Tensor:
    """Of a parameter that stage 3 has cut, what this rank holds without padding, which is memory that nobody filled."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    start = torch.distributed.get_rank() * parameter.partition_numel()
    return parameter.ds_tensor[: max(0, parameter.ds_numel - start)]


def _combined(norms: list[Any]) -> torch.Tensor:
    """Norm of the whole from the norms of its parts, of which those that are not finite are marked by -1."""
    parts = torch.stack([torch.as_tensor(norm, dtype=torch.float32) for norm in norms])
    return torch.linalg.vector_norm(torch.where(parts < 0, math.inf, parts))


def _agreed(norm: torch.Tensor) -> float:
    """One number for all ranks, who decide by it: theirs might differ in the last digit."""
    (total,) = distributed.sum_over_ranks([float(norm)])
    mean = total / torch.distributed.get_world_size()
    return mean if math.isfinite(mean) else math.inf


@contextlib.contextmanager
def _replaced(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Let this one object have another method for a while."""
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)
