"""The enhanced mask decoder (paper, section 3.2 and appendix A.8) and the vocabulary head, at predicted places only.

The decoder has no weights of its own: the last encoder layer runs twice, with the hidden states of the layer before
as keys and values, and queries that start from hidden state + absolute position. Only predicted places ask.
Shape letters: B batch, L length, P predicted tokens, Q most predicted tokens in a row, E hidden size, V vocabulary.
"""

import torch
from torch import nn

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ModelConfig
from deberta_scale.model.encoder import Encoded, Layer
from deberta_scale.model.sizes import DECODER_PASSES
from deberta_scale.model.vocabulary_loss import VocabularyLoss, in_ranges, logits_of


def decode_masks(layer: Layer, encoded: Encoded, positions: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
    """Hidden states [P, E] of the predicted places.

    `encoded` is the output of the layer before `layer`, `positions` the absolute position embeddings [P, E] of the
    predicted places. Equal, value and gradient, to asking at every place and selecting afterwards.
    """
    num_rows, length, size = encoded.hidden.shape
    rows, places = batch.predict_positions // length, batch.predict_positions % length
    num_queries = batch.max_predictions_per_row
    counts = rows.new_zeros(num_rows).index_add_(0, rows, torch.ones_like(rows))
    starts = counts.cumsum(0) - counts
    # Predicted places are laid out as [B, Q]; slots that a row does not fill are blank and never read.
    slots = rows * num_queries + torch.arange(len(rows), device=rows.device) - starts[rows]

    def lay_out(values: torch.Tensor, blank: int) -> torch.Tensor:
        blanks = values.new_full((num_rows * num_queries, *values.shape[1:]), blank)
        return blanks.index_copy(0, slots, values).unflatten(0, (num_rows, num_queries))

    keys = layer.keys(encoded.hidden, encoded.relative_table)
    view = encoded.view._replace(query_places=lay_out(places, blank=-1))
    queries = lay_out(encoded.hidden[rows, places] + positions, blank=0)
    for _ in range(DECODER_PASSES):
        queries = layer(queries, keys, view)
    return queries.reshape(-1, size)[slots]


class PredictionHead(nn.Module):
    """dense → gelu → LayerNorm → product with the word embeddings + a bias for each piece of the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.word_embedding_size)
        self.LayerNorm = nn.LayerNorm(config.word_embedding_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: torch.Tensor, word_embeddings: torch.Tensor, targets: torch.Tensor) -> VocabularyLoss:
        """[P, E], the word table [V, word size] and the right pieces [P] → loss, without all logits at once."""
        return in_ranges(self._transformed(hidden), word_embeddings, self.bias, targets)

    def logits(self, hidden: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """[P, V], fp32. Not for an engine: ZeRO-3 gathers the bias for `forward` alone."""
        return logits_of(self._transformed(hidden), word_embeddings, self.bias)

    def _transformed(self, hidden: torch.Tensor) -> torch.Tensor:
        transformed: torch.Tensor = self.LayerNorm(nn.functional.gelu(self.dense(hidden)))
        return transformed
