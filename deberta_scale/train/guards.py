"""Bad steps: a loss or gradient that is not finite, or a gradient that is far too large, never reaches the weights.

Such a step is skipped: it counts, its samples are used up, and nothing else changes. After too many of them the run
goes back to a checkpoint and passes over the steps that failed. All of it is decided on numbers that all ranks share.
"""

import math
from dataclasses import dataclass, replace

import torch

from deberta_scale.config import GuardsConfig
from deberta_scale.train.distributed import AgreedError, gather_objects, sum_over_ranks
from deberta_scale.train.engine_update import Update
from deberta_scale.train.state import GuardState

_NORMS_IN_MEAN = 50
"""Steps over which the running mean of gradient norms reaches, roughly."""
_SMALLEST_DEVIATION = 0.1
"""Of the mean: where norms hardly vary, one that is a little larger is no spike."""


class DivergedError(AgreedError):
    """Steps fail, and going back to a checkpoint does not help, or there is none."""


class GoBack(Exception):
    """The run cannot go on from where it stands; the message says why. Raised on all ranks together."""


class NothingToPredictError(AgreedError):
    """A step in which no rank has a token to predict has no loss."""


@dataclass(frozen=True)
class Skip:
    """Why a step changed nothing."""

    why: str
    value: float
    """Of the loss or the gradient's norm."""
    is_spike: bool = False
    is_overflow: bool = False
    """The loss scale of fp16 was too large: part of finding it, and no failure."""


@dataclass(frozen=True)
class StepOutcome:
    """What became of a step; the same on all ranks."""

    norm: float
    """Of the whole gradient before clipping."""
    skip: Skip | None


def jump_after_resume(before: float | None, after: float) -> str | None:
    """A warning when the first loss after a resume is far above the last one before it, in nats; None when it is not.

    Losses of neighbouring intervals differ by some hundredths; weights or moments that are not what they were show.
    """
    if before is None or after < before + max(0.5, 0.25 * before):
        return None
    return (
        f"warning: the first loss after the resume is {after:.4f}, the last one before it was {before:.4f}: is this the"
        " run that the checkpoint belongs to, and are data and settings what they were?"
    )


class LossCheck:
    """Asks whether a loss is finite on every rank, without waiting for the work queued on a GPU after it."""

    def __init__(self, loss: torch.Tensor) -> None:
        """Start copying it to the host. Call right after the forward pass."""
        loss = loss.detach()
        self._copied: torch.cuda.Event | None = None
        if loss.is_cuda:
            self._loss = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._loss = loss.clone()

    def skip(self) -> Skip | None:
        """Why to skip the step, when the loss is not finite on one of the ranks; the same on all of them."""
        if self._copied is not None:
            self._copied.synchronize()
        loss = self._loss.item()
        (total,) = sum_over_ranks([loss])
        if math.isfinite(total):
            return None
        losses = gather_objects(loss)
        ranks = [rank for rank, value in enumerate(losses) if not math.isfinite(value)]
        return Skip(f"the loss is not finite on rank {', '.join(map(str, ranks))}", losses[ranks[0]])


def skip_of(update: Update, largest_norm: float) -> Skip | None:
    """Why `update` was left out, if it was, when the loss was finite."""
    if update.made:
        return None
    if update.overflowed:
        return Skip("the gradient overflowed in fp16", update.norm, is_overflow=True)
    if math.isfinite(update.norm):
        return Skip(f"the gradient norm is {update.norm:.4g}, above {largest_norm:.4g}", update.norm, is_spike=True)
    return Skip("the gradient is not finite", update.norm)


class Guards:
    """Judges steps, and counts those that were skipped. The same on all ranks."""

    def __init__(self, config: GuardsConfig, state: GuardState) -> None:
        self._config, self.state = config, state

    @property
    def largest_norm(self) -> float:
        """The norm above which a gradient is a spike."""
        state = self.state
        if state.num_norms < self._config.spike_after_steps:
            return math.inf
        deviation = max(math.sqrt(state.norm_variance), _SMALLEST_DEVIATION * state.norm_mean)
        return state.norm_mean + self._config.spike_factor * deviation

    def passes_over(self, step: int) -> bool:
        return step in self.state.passed_over

    def note_passed_over(self) -> None:
        self.state = replace(self.state, num_skipped=self.state.num_skipped + 1)

    def note(self, step: int, outcome: StepOutcome) -> None:
        """Count the step, the first being 1. Raises GoBack when too many were skipped."""
        skip = outcome.skip
        if skip is not None and skip.is_overflow:
            self.state = replace(self.state, num_overflowed=self.state.num_overflowed + 1)
            return
        if skip is None or skip.is_spike:
            # A spike counts as the limit, which rises by half each time: norms that stay higher are spikes at first.
            self.state = _with_norm(self.state, min(outcome.norm, self.largest_norm))
        if skip is None:
            self.state = replace(self.state, updated_step=step)
        else:
            recent = [*(s for s in self.state.recent_skips if s > step - self._config.window_steps), step]
            self.state = replace(self.state, num_skipped=self.state.num_skipped + 1, recent_skips=recent)
            if len(recent) > self._config.max_skips:
                raise GoBack(f"{len(recent)} of the last {self._config.window_steps} steps were skipped")

    def go_back(self, failed_step: int, step: int, saved: GuardState) -> list[int]:
        """From `failed_step`: take the state saved after `step`. Returns the steps beyond it that were skipped lately,
        which are passed over from now on.

        Raises DivergedError after `max_rollbacks` without weights that were updated beyond the step that had failed.
        """
        before = self.state
        num = 1 if saved.updated_step > before.failed_step else before.num_rollbacks + 1
        if num > self._config.max_rollbacks:
            raise DivergedError(
                f"going back {before.num_rollbacks} time(s), as guards.max_rollbacks allows, brought no checkpoint that"
                f" was trained beyond step {before.failed_step}"
            )
        failed = [s for s in before.recent_skips if s > step]
        self.state = replace(
            saved,
            passed_over=sorted({*saved.passed_over, *before.passed_over, *failed}),
            num_rollbacks=num,
            failed_step=max(before.failed_step, failed_step),
        )
        return failed


def _with_norm(state: GuardState, norm: float) -> GuardState:
    """With one more norm in the exponential mean and variance, which begin as the plain ones."""
    weight = max(1 / (state.num_norms + 1), 1 / _NORMS_IN_MEAN)
    change = norm - state.norm_mean
    return replace(
        state,
        num_norms=state.num_norms + 1,
        norm_mean=state.norm_mean + weight * change,
        norm_variance=(1 - weight) * (state.norm_variance + weight * change**2),
    )
