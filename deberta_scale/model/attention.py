"""Disentangled self-attention (paper, section 3.1), as the released checkpoints compute it: the projections around a
kernel, which `kernels.choice` chooses.

Shape letters: B batch, L keys, Q queries (L, or fewer in the mask decoder), H heads, D head size, E hidden size,
R rows of the relative table.
"""

import torch
from torch import nn

from deberta_scale.config import ModelConfig
from deberta_scale.kernels.choice import choose
from deberta_scale.kernels.dropout import drawn
from deberta_scale.kernels.signature import Keys, View


class DisentangledSelfAttention(nn.Module):
    """Projections to queries, keys, values and relative tables. With `share_att_key` the content projections, biases
    included, also project the relative table (V2/V3); without it the table has projections of its own (V1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        width = self.num_heads * self.head_size
        self.query_proj = nn.Linear(config.hidden_size, width)
        self.key_proj = nn.Linear(config.hidden_size, width)
        self.value_proj = nn.Linear(config.hidden_size, width)
        terms = config.pos_att_type if config.relative_attention else ()
        self.content_to_position, self.position_to_content = "c2p" in terms, "p2c" in terms
        self.share_att_key = config.share_att_key
        if not config.share_att_key:
            if self.content_to_position:
                self.pos_key_proj = nn.Linear(config.hidden_size, width)
            if self.position_to_content:
                self.pos_query_proj = nn.Linear(config.hidden_size, width)
        self.pos_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dropout_probability = config.attention_probs_dropout_prob

    def keys(self, hidden: torch.Tensor, relative_table: torch.Tensor | None) -> Keys:
        """Project hidden states [B, L, E] and the relative table [R, E] for any number of query passes."""
        relative_key = relative_query = None
        if relative_table is not None:
            relative_table = self.pos_dropout(relative_table)
            if self.content_to_position:
                project = self.key_proj if self.share_att_key else self.pos_key_proj
                relative_key = self._heads(project(relative_table))
            if self.position_to_content:
                project = self.query_proj if self.share_att_key else self.pos_query_proj
                relative_query = self._heads(project(relative_table))
        key, value = self._heads(self.key_proj(hidden)), self._heads(self.value_proj(hidden))
        return Keys(key, value, relative_key, relative_query)

    def forward(self, query_states: torch.Tensor, keys: Keys, view: View) -> torch.Tensor:
        """[B, Q, E] → [B, Q, H * D]."""
        query = self._heads(self.query_proj(query_states))
        kernel = choose(query.device, query.dtype, all_places_ask=view.query_places is None)
        dropout = drawn(self.dropout_probability) if self.training else None
        return kernel.attention(query, keys, view, dropout).flatten(-2)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_size))
