"""SiFT, scale-invariant fine-tuning: virtual adversarial training on normalised embeddings (paper, section 4).

A training step makes three passes. The clean one gives the task's loss. A second, from a random perturbation, gives
the direction in which the output changes most; only the gradient to the perturbation is computed, so that neither
weights nor the hooks of ZeRO and DistributedDataParallel see it. The third, with the perturbation moved that way, gives
the adversarial loss: how far its output is from the clean one.

A perturbation is in units of the standard deviation of the embedding that it is added to, x + deviation(x) * delta,
whatever the scale of the table. At the input of a LayerNorm that is the same as adding delta to the normalised
embedding, and with delta 0 the model computes what it always does.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from deberta_scale.config_sift import Head, SiftConfig
from deberta_scale.finetune.sift_losses import (
    Apart,
    all_apart,
    check_counted,
    compare,
    logits_of_task,
    official_divergence,
)
from deberta_scale.finetune.sift_passes import (
    CleanPass,
    PerturbedPass,
    RandomState,
    hooked,
    into_ball,
    modules_to_perturb,
)

OFFICIAL_EPSILON = 1e-6
"""Added to the length of a gradient by the released code."""

logger = logging.getLogger(__name__)


class Sifted(NamedTuple):
    """What a forward pass gave, and the adversarial loss."""

    outputs: Any
    """Of the clean pass."""
    penalty_sum: torch.Tensor
    """Scalar fp32: `weight` times the divergences of all distributions compared; 0 in evaluation mode."""
    num_compared: torch.Tensor
    """Scalar int64: distributions compared. Divide once, by their number over all ranks and micro-batches."""

    @property
    def penalty(self) -> torch.Tensor:
        """Mean over the distributions of this batch: what is added to a loss that is such a mean."""
        return self.penalty_sum / self.num_compared.clamp(min=1)


def _as_given(outputs: Any) -> Any:
    return outputs


class Sift:
    """Adversarial training of `model`, whose modules are hooked during the passes only.

    Raises ValueError when the config does not suit the task, or the model has none of the modules to perturb.
    """

    def __init__(self, model: nn.Module, config: SiftConfig, task: Head) -> None:
        self.model = model
        self.config = config
        self.task: Head = task
        self.modules = modules_to_perturb(model, config.modules)
        self.inner_loss, self.outer_loss = config.losses(task)
        self.num_fallbacks = 0
        """Perturbations that stayed where they were because the gradient was not finite."""

    def __call__(
        self,
        forward: Callable[[], Any],
        logits: Callable[[Any], Any] = _as_given,
        counted: torch.Tensor | None = None,
    ) -> Sifted:
        """Call `forward`, which runs the model on one batch, for the clean and the perturbed passes. `logits` finds
        in what it returns that which the task is about. A model in evaluation mode makes the clean pass only.

        classification: [B, N]; regression: [B] or [B, 1]; choice: [B, C]; tokens: [B, L, N]; span: a pair of
        [B, L]. `counted`, bool: for span and choice of the logits' shape, the places or choices that exist;
        for the others without the last dimension, the rows or tokens that count. Required for spans and tokens.
        Raises ValueError when outputs or `counted` are not of this form.
        """
        if not self.model.training:
            outputs = forward()
            device = logits_of_task(self.task, logits(outputs))[0].device
            return Sifted(outputs, torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device))
        seed = int(torch.randint(2**62, ()))  # the noise has a source of its own, so that dropout is left alone
        dropout = RandomState(self.model) if self.config.keeps_dropout else None
        with hooked(self.modules, CleanPass(self.config)):
            outputs = forward()
        clean = logits_of_task(self.task, logits(outputs))
        check_counted(self.task, clean, counted)

        def perturbed(one_pass: PerturbedPass) -> list[torch.Tensor]:
            if dropout is not None:
                dropout.restore()
            with hooked(self.modules, one_pass):
                return logits_of_task(self.task, logits(forward()))

        deltas = self._ascend(perturbed, clean, counted, seed)
        adversarial = perturbed(PerturbedPass(self.config, seed, deltas))
        apart = self._apart(self.outer_loss, adversarial, clean, counted)
        return Sifted(outputs, self.config.weight * apart.total, apart.num_compared)

    def _ascend(
        self,
        perturbed: Callable[[PerturbedPass], list[torch.Tensor]],
        clean: list[torch.Tensor],
        counted: torch.Tensor | None,
        seed: int,
    ) -> list[torch.Tensor]:
        """From a random start to the adversarial perturbation of each call of a hooked module. All ranks make all
        passes, whatever becomes of their gradients: in ZeRO's stage 3 they make them together."""
        deltas: list[torch.Tensor] | None = None
        for _ in range(self.config.ascent_steps):
            climbed = None if deltas is None else [delta.requires_grad_() for delta in deltas]
            one_pass = PerturbedPass(self.config, seed, climbed)
            outputs = perturbed(one_pass)
            gradients = self._gradients(outputs, clean, one_pass.deltas, counted)
            deltas = [delta.detach() for delta in one_pass.deltas]
            if all(bool(gradient.isfinite().all()) for gradient in gradients):
                deltas = [self._moved(delta, gradient) for delta, gradient in zip(deltas, gradients, strict=True)]
            else:
                self._tell_of_fallback()
        assert deltas is not None
        return deltas

    def _gradients(
        self,
        outputs: list[torch.Tensor],
        clean: list[torch.Tensor],
        deltas: list[torch.Tensor],
        counted: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Of the inner loss, to the perturbations alone. The way back through the model begins near 1, whatever the
        size of the loss: in fp16 it would else end in zeros. A power of two changes no other bit."""
        if not all(tensor.requires_grad for tensor in outputs):
            raise ValueError("SiFT: outputs have no gradient; do not call the model under torch.no_grad")
        leaves = [tensor.detach().requires_grad_() for tensor in outputs]
        at_outputs = torch.autograd.grad(self._apart(self.inner_loss, leaves, clean, counted).total, leaves)
        largest = torch.stack([gradient.abs().max() for gradient in at_outputs]).max()
        scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
        gradients = torch.autograd.grad(outputs, deltas, [gradient / scale for gradient in at_outputs])
        return [gradient * scale for gradient in gradients]

    def _apart(
        self, kind: Any, perturbed: list[torch.Tensor], clean: list[torch.Tensor], counted: torch.Tensor | None
    ) -> Apart:
        if self.config.compat == "none":
            return compare(self.task, kind, perturbed, clean, counted)
        return all_apart(official_divergence(perturbed[0], clean[0]))

    def _moved(self, delta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """One step up, for each token by itself; a token without gradient stays."""
        order = 2 if self.config.ball == "l2" else float("inf")
        length = torch.linalg.vector_norm(gradient, order, dim=-1, keepdim=True)
        if self.config.compat == "official":
            return delta + self.config.step_size * gradient / (length + OFFICIAL_EPSILON)
        direction = torch.where(length > 0, gradient / length, 0.0)
        return into_ball(delta + self.config.step_size * direction, self.config)

    def _tell_of_fallback(self) -> None:
        self.num_fallbacks += 1
        logger.warning(
            "SiFT: the gradient to the perturbation is not finite, so it stays where it was; %d time(s) so far",
            self.num_fallbacks,
        )


class SiftedModel(nn.Module):
    """A model whose every call makes all passes: what an engine wraps, since a call of the engine is one forward pass.

    `sifted(*arguments, counted=...)` runs `model(*arguments)`; see `Sift.__call__`.
    """

    def __init__(
        self, model: nn.Module, config: SiftConfig, task: Head, logits: Callable[[Any], Any] = _as_given
    ) -> None:
        super().__init__()
        self.model = model
        self.sift = Sift(model, config, task)
        self.logits = logits

    def forward(self, *arguments: Any, counted: torch.Tensor | None = None, **named: Any) -> Sifted:
        return self.sift(lambda: self.model(*arguments, **named), self.logits, counted)
