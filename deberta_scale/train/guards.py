"""A step whose loss is not finite never reaches the weights."""

import torch

from deberta_scale.train.distributed import sum_over_ranks


class NonFiniteError(ValueError):
    """The loss or the gradient is infinite or not a number."""


class NothingToPredictError(ValueError):
    """A step in which no rank has a token to predict has no loss."""


class FiniteCheck:
    """Asks whether a loss is finite on every rank, without waiting for the work queued on a GPU after it."""

    def __init__(self, loss: torch.Tensor) -> None:
        """Start copying the answer to the host. Call right after the forward pass."""
        finite = torch.isfinite(loss.detach())
        self._copied: torch.cuda.Event | None = None
        if finite.is_cuda:
            self._finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._finite = finite

    def raise_unless_finite(self) -> None:
        """Raise NonFiniteError on all ranks when it is not finite on one of them."""
        if self._copied is not None:
            self._copied.synchronize()
        (num_ranks,) = sum_over_ranks([not self._finite.item()])
        if num_ranks:
            raise NonFiniteError(f"the loss is not finite on {num_ranks:.0f} rank(s)")
