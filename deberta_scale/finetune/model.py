"""A model of a task: encoder and head → sums that are divided once, by the step.

Shape letters: B rows, C choices, L places, N labels.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from deberta_scale.config import ModelConfig
from deberta_scale.config_sift import SiftConfig
from deberta_scale.finetune.features import IGNORED
from deberta_scale.finetune.heads import model_with_head
from deberta_scale.finetune.loader import TaskBatch
from deberta_scale.finetune.sift import Sift
from deberta_scale.finetune.tasks import Task


class TaskModel(nn.Module):
    """What an engine trains. `model` is the encoder with its head, whose state dict keys are the official ones."""

    def __init__(
        self,
        task: Task,
        config: ModelConfig,
        head_dropout: float | None = None,
        sift: SiftConfig | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        """`head_dropout` is that before the last layer, where None `hidden_dropout_prob`, as in the official code.

        Raises ValueError for a head_dropout where the head has none, and for a `sift` that does not suit the task.
        """
        super().__init__()
        self.config, self.head = config, task.head
        if head_dropout is not None and task.head == "span":
            raise ValueError(f"head_dropout {head_dropout} has no effect on {task.name}, whose head has no dropout")
        dropout = config.hidden_dropout_prob if head_dropout is None else head_dropout
        self.model = model_with_head(task.head, config, len(task.labels.names), dropout, checkpoint_activations)
        self.sift = None if sift is None else Sift(self.model, sift, task.head)
        self._recorded: list[torch.Tensor] | None = None

    def forward(self, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum of the losses, number of targets they are of, number predicted right), each a scalar, fp32; all 0 where
        a batch has no targets.

        The loss is the cross-entropy in nats: of a row's label or choice, of a labelled token, of a span the mean of
        its two ends; of a regression the squared error, which is never right. In training with SiFT its penalty is in
        the sum: divided by the number of targets, it is the mean of the loss and that of the penalty.
        """
        logits, penalty_sum = self._logits_and_penalty(batch)
        if self._recorded is not None:
            self._recorded.append(logits.detach())
        if batch.targets is None:
            nothing = logits.new_zeros(())
            return nothing, nothing, nothing
        loss_sum, is_counted, is_right = self._losses(logits, batch.targets)
        return loss_sum + penalty_sum, is_counted.sum().float(), is_right.sum().float()

    def logits(self, batch: TaskBatch) -> torch.Tensor:
        """fp32: [B, N] labels, [B, 1] numbers, [B, C] choices, [B, L, N] labels of tokens, [B, 2, L] first and last
        token of a span. What is padding can be neither choice nor end of a span."""
        outputs = self.model(batch.token_ids, batch.segment_ids)
        if self.head == "choice":
            exists = (batch.segment_ids > 0).any(-1)
            return outputs.masked_fill(~exists, torch.finfo(outputs.dtype).min)
        return torch.stack(outputs, dim=1) if self.head == "span" else outputs

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[torch.Tensor]]:
        """A list to which every forward pass inside adds its logits: an engine is called as a whole, and gives sums."""
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def _logits_and_penalty(self, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The penalty is a sum over distributions, of which a span has two."""
        if self.sift is None or not self.training:
            logits = self.logits(batch)
            return logits, logits.new_zeros(())
        sifted = self.sift(lambda: self.logits(batch), self._distributions, self._compared(batch))
        return sifted.outputs, sifted.penalty_sum / (2 if self.head == "span" else 1)

    def _distributions(self, logits: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """As SiFT takes them."""
        return logits.unbind(1) if self.head == "span" else logits

    def _compared(self, batch: TaskBatch) -> torch.Tensor | None:
        """`counted` of SiFT: the tokens that have a label, the places that may be an end of a span."""
        if self.head == "tokens":
            assert batch.targets is not None
            return batch.targets != IGNORED
        return batch.segment_ids > 0 if self.head == "span" else None

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum, which targets it is of, which of them are right): a scalar, bool [B] or [B, L]."""
        if self.head == "regression":
            nothing_is_right = torch.zeros_like(targets, dtype=torch.bool)
            return (logits.squeeze(-1) - targets).square().sum(), ~nothing_is_right, nothing_is_right
        loss_sum = nn.functional.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=IGNORED
        )
        is_counted, is_right = targets != IGNORED, logits.argmax(-1) == targets
        if self.head == "span":
            return loss_sum / 2, is_counted.all(-1), is_right.all(-1)
        return loss_sum, is_counted, is_right
