"""The end of a block, LayerNorm(dropout(states) + residual): one pass over memory each way, where it is compiled.

The compiled one, csrc/residual_norm.cpp, keeps the sums and no record of what was dropped, and its gradients are the
same bits for any number of threads. It has a twin in torch operations. Other devices than CPUs have torch's own
dropout, since there a counter would take more passes than it spares.
"""

from typing import Any

import torch
from torch.nn import functional

from deberta_scale.kernels import cpu_build
from deberta_scale.kernels.dropout import drawn, kept
from deberta_scale.kernels.signature import Dropout


def residual_norm(
    states: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    drop_probability: float,
) -> torch.Tensor:
    """[..., E] and [..., E] → [..., E]; weight and bias are [E]. Random numbers come of torch's generator."""
    if states.device.type != "cpu":
        dropped = functional.dropout(states, drop_probability)
        return functional.layer_norm(dropped + residual, weight.shape, weight, bias, epsilon)
    one_of_both = step_by_step if cpu_build.why_not(states.dtype) else compiled
    return one_of_both(states, residual, weight, bias, epsilon, drawn(drop_probability))


def step_by_step(
    states: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    dropout: Dropout | None,
) -> torch.Tensor:
    """In torch operations. Rows of the states are numbered as those of probabilities are, see kernels/dropout.py."""
    if dropout is not None:
        rows = torch.arange(states.numel() // states.size(-1), device=states.device)
        keep = kept(dropout, 1, rows[None], states.size(-1)).view_as(states)
        states = states * (keep.to(states.dtype) / (1 - dropout.probability))
    return functional.layer_norm(states + residual, weight.shape, weight, bias, epsilon)


def compiled(
    states: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    dropout: Dropout | None,
) -> torch.Tensor:
    """The same, for tensors on a CPU, where `cpu_build.why_not` says nothing."""
    normalised: torch.Tensor = _Compiled.apply(states, residual, weight, bias, epsilon, dropout)
    return normalised


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Any, residual: Any, weight: Any, bias: Any, epsilon: float, dropout: Any) -> Any:
        numbers = (0.0, 0) if dropout is None else tuple(dropout)
        normalised, *kept = torch.ops.deberta_scale.residual_norm_forward(
            states.contiguous(), residual.contiguous(), weight, bias, epsilon, *numbers
        )
        ctx.save_for_backward(*kept, weight)
        ctx.numbers = numbers
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        gradients = torch.ops.deberta_scale.residual_norm_backward(
            gradient.contiguous(), *ctx.saved_tensors, *ctx.numbers
        )
        return (*gradients, None, None)
