"""The one thing that travels from data to model."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch


@dataclass(frozen=True)
class ModelBatch:
    """Rows side by side: what all batches have in common."""

    token_ids: torch.Tensor
    """[..., L] int64: what the model sees; padding is id 0."""

    def to(self, device: torch.device | str) -> Self:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class MaskedBatch(ModelBatch):
    """Masked rows, `token_ids` [B, L], and what to predict in them. B rows, L places a row, P predicted tokens in the
    whole batch."""

    segment_ids: torch.Tensor
    """[B, L] int64: number of the document inside its row, from 1; 0 is padding. Attention stays inside a document."""
    position_ids: torch.Tensor
    """[B, L] int64: place inside the document, from 0."""
    predict_positions: torch.Tensor
    """[P] int64: flat index (row * L + place) of each predicted token, ascending."""
    predict_ids: torch.Tensor
    """[P] int64: the true token there."""
    max_predictions_per_row: int
    """The most predicted tokens in one row: known here, so that the mask decoder need not ask a device for it."""
