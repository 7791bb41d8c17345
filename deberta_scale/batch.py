"""The one thing that travels from data to model."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class MaskedBatch:
    """Masked rows and what to predict in them. B rows, L places a row, P predicted tokens in the whole batch."""

    token_ids: torch.Tensor
    """[B, L] int64: what the model sees; padding is id 0."""
    segment_ids: torch.Tensor
    """[B, L] int64: number of the document inside its row, from 1; 0 is padding. Attention stays inside a document."""
    position_ids: torch.Tensor
    """[B, L] int64: place inside the document, from 0."""
    predict_positions: torch.Tensor
    """[P] int64: flat index (row * L + place) of each predicted token, ascending."""
    predict_ids: torch.Tensor
    """[P] int64: the true token there."""

    def to(self, device: torch.device | str) -> "MaskedBatch":
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return MaskedBatch(**moved)
