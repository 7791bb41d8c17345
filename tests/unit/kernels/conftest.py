"""What tests of compiled kernels share."""

import pytest
import torch

from deberta_scale.kernels import cpu_build


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"], scope="module")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each that kernels are compiled for, where this processor has it."""
    if reason := cpu_build.why_not(request.param):
        pytest.skip(reason)
    found: torch.dtype = request.param
    return found
