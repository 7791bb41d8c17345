"""LayerNorm(dropout(states) + residual) in one pass equals torch's own operations, in value and in all gradients."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_scale.kernels import cpu_build
from deberta_scale.kernels.residual_norm import compiled, residual_norm, step_by_step
from deberta_scale.kernels.signature import Dropout
from tests.attention_cases import errors

NAMES = ("output", "states", "residual", "weight", "bias")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
"""Of bf16 a single rounding, 2**-8: sums and outputs are rounded once each. torch's own operations add gradients of
weight and bias up in bf16, and are 5e-2 off at 4,096 rows."""


def operands(rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """States, residual, weight, bias and the gradient of the output; numbers that `dtype` holds."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, width), (rows, width), (width,), (width,), (rows, width)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def run(
    function: Callable[..., torch.Tensor], given: list[torch.Tensor], dropout: Dropout | None
) -> dict[str, torch.Tensor]:
    *inputs, gradient = given
    inputs = [tensor.requires_grad_() for tensor in inputs]
    output = function(*inputs, 1e-7, dropout)
    found = torch.autograd.grad(output, inputs, gradient)
    assert all(tensor.dtype == gradient.dtype for tensor in (output, *found))
    return {name: tensor.detach().float() for name, tensor in zip(NAMES, (output, *found), strict=True)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(32, 200),
    width=st.integers(30, 100) | st.sampled_from([256, 768]),
    dropout=st.sampled_from([None, Dropout(0.1, 2**62 + 1), Dropout(0.6, 0)]),
    seed=st.integers(0, 2**32),
)
def test_equals_the_operations_step_by_step_in_value_and_gradient(
    dtype: torch.dtype, rows: int, width: int, dropout: Dropout | None, seed: int
) -> None:
    given_here = operands(rows, width, dtype, seed)
    found = errors(
        run(compiled, given_here, dropout),
        run(step_by_step, [tensor.detach().float() for tensor in given_here], dropout),
    )
    assert max(found.values()) < TOLERANCES[dtype], found


def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(run(compiled, operands(300, 72, dtype), Dropout(0.1, 9)))
    finally:
        torch.set_num_threads(before)
    for name, expected in results[0].items():
        assert all(torch.equal(found[name], expected) for found in results[1:]), name


def test_drops_the_share_it_should_anew_in_each_call(dtype: torch.dtype) -> None:
    states, _, weight, bias, _ = operands(400, 256, dtype)
    dropped = []
    for _ in range(2):
        states = states.detach().requires_grad_()
        output = residual_norm(states, torch.zeros_like(states), weight, bias, 1e-7, 0.3)
        (gradient,) = torch.autograd.grad(output.float().square().sum(), states)
        dropped.append(gradient == 0)
    assert dropped[0].float().mean() == pytest.approx(0.3, abs=0.01)
    assert (dropped[0] == dropped[1]).float().mean() == pytest.approx(0.58, abs=0.01)  # of independent draws


def test_where_it_is_not_compiled_the_same_is_dropped(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    states, residual, weight, bias, _ = operands(40, 64, dtype)
    outputs = []
    for reason in (None, "not here"):
        monkeypatch.setattr(cpu_build, "why_not", lambda dtype, reason=reason: reason)
        torch.manual_seed(7)
        outputs.append(residual_norm(states, residual, weight, bias, 1e-7, 0.5))
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-5 if dtype == torch.float32 else 6e-2)


def test_what_does_not_fit_is_refused_by_name(dtype: torch.dtype) -> None:
    states, residual, weight, bias, _ = operands(4, 24, dtype)
    for change, named in (
        ({"residual": residual[:3]}, "residual must be contiguous and like the states"),
        ({"residual": residual.double()}, "residual must be contiguous and like the states"),
        ({"weight": weight[:8]}, "weight and bias must be vectors as wide as the states"),
        ({"bias": bias.double()}, "weight and bias must be vectors as wide as the states"),
    ):
        given_here = {"states": states, "residual": residual, "weight": weight, "bias": bias} | change
        with pytest.raises(RuntimeError, match=named):
            compiled(**given_here, epsilon=1e-7, dropout=None)
