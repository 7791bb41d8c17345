"""The formula compiled for CPUs with AVX-512, and AMX where there is: in tiles, with nothing kept but the output and
the logarithms of the sums. Gradients are the same bits for any number of threads.

The method is told in csrc/scores.h. To be called when `cpu_build.why_not` says nothing.
"""

from typing import Any

import torch

from deberta_scale.kernels.signature import Dropout, Keys, View, score_scale


def attention(query: torch.Tensor, keys: Keys, view: View, dropout: Dropout | None = None) -> torch.Tensor:
    """An `AttentionKernel` for fp32 and bf16."""
    scale = score_scale(query.size(-1), keys)
    attended: torch.Tensor = _Compiled.apply(query, *keys, view, scale, dropout)
    return attended


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, relative_key: Any, relative_query: Any, *rest: Any) -> Any:
        view, scale, dropout = rest
        tensors = [_contiguous(tensor) for tensor in (query, key, value, relative_key, relative_query, *view)]
        numbers = (scale, *((0.0, 0) if dropout is None else dropout))
        output, log_sums = torch.ops.deberta_scale.attention_forward(*tensors, *numbers)
        ctx.save_for_backward(output, log_sums, *tensors)
        ctx.numbers = numbers
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        output, log_sums, *tensors = ctx.saved_tensors
        gradients = torch.ops.deberta_scale.attention_backward(
            gradient.contiguous(), output, log_sums, *tensors, *ctx.numbers
        )
        asked = zip(gradients, tensors, strict=False)
        return (*(None if tensor is None else gradient for gradient, tensor in asked), None, None, None)


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
