"""Masked language modelling: encoder, mask decoder and vocabulary head → sums that are divided once, by the step.

Shape letters: P predicted tokens, E hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import nn

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ModelConfig
from deberta_scale.model.emd import PredictionHead, decode_masks
from deberta_scale.model.encoder import Deberta, Encoded
from deberta_scale.model.initial import initialise


class PretrainingModel(nn.Module):
    """State dict keys are those of the official `MaskedLanguageModel`; the decoder is the word table, stored once."""

    def __init__(self, config: ModelConfig, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.config = config
        self.deberta = Deberta(config, checkpoint_activations)
        self.lm_predictions = nn.ModuleDict({"lm_head": PredictionHead(config)})
        initialise(self, config.initializer_range)

    def forward(self, batch: MaskedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum of the cross-entropies in nats, number of predicted tokens, number predicted right), each a scalar."""
        hidden = self._hidden_at_predictions(batch)
        words = self.deberta.embeddings.word_embeddings.weight
        loss_sum, correct = self.lm_predictions["lm_head"](hidden, words, batch.predict_ids)
        return loss_sum, torch.full_like(correct, len(batch.predict_ids)), correct

    def logits(self, batch: MaskedBatch) -> torch.Tensor:
        """[P, V], fp32, at `batch.predict_positions`. The tokens there are not looked at in `batch.predict_ids`."""
        hidden = self._hidden_at_predictions(batch)
        head: Any = self.lm_predictions["lm_head"]
        logits: torch.Tensor = head.logits(hidden, self.deberta.embeddings.word_embeddings.weight)
        return logits

    def _hidden_at_predictions(self, batch: MaskedBatch) -> torch.Tensor:
        rows = (batch.token_ids, batch.segment_ids, batch.position_ids)
        if self.config.baseline:
            return self.deberta(*rows).hidden.flatten(0, 1)[batch.predict_positions]
        encoded: Encoded = self.deberta(*rows, num_layers=self.config.num_hidden_layers - 1)
        places = batch.position_ids.flatten()[batch.predict_positions]
        positions = self.deberta.embeddings.position_embeddings(places)
        encoder = self.deberta.encoder
        return encoder.run(decode_masks, encoder.layer[-1], encoded, positions, batch)
