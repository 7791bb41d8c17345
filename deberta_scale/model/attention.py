"""Disentangled self-attention (paper, section 3.1), as the released checkpoints compute it.

Shape letters: B batch, L keys, Q queries (L, or fewer in the mask decoder), H heads, D head size, E hidden size,
R rows of the relative table.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from deberta_scale.config import ModelConfig


class View(NamedTuple):
    """What each query may look at, and from how far. A named tuple, as all that passes between modules here: ZeRO-3
    follows the tensors in tuples."""

    allowed: torch.Tensor
    """[B, Q, L] bool: the key is a token of the query's own document. A query without any gets zeros."""
    relative_rows: torch.Tensor | None
    """[Q, L], or [B, Q, L] when rows ask from different places: row of the relative table for each pair. None in the
    baseline."""


class Keys(NamedTuple):
    """What queries meet. Computed once, also where two passes of queries meet the same."""

    key: torch.Tensor
    """[B, L, H, D]"""
    value: torch.Tensor
    """[B, L, H, D]"""
    relative_key: torch.Tensor | None
    """[R, H, D]; None without the content-to-position term."""
    relative_query: torch.Tensor | None
    """[R, H, D]; None without the position-to-content term."""


def disentangled_attention(
    query: torch.Tensor, keys: Keys, view: View, dropout_probability: float = 0.0
) -> torch.Tensor:
    """softmax(Qc·Kc + Qc·Kr[δ(i,j)] + Kc·Qr[δ(i,j)]) V, each product scaled by 1/sqrt(D * number of terms).

    `query` is [B, Q, H, D]; returns [B, Q, H, D] in the dtype of the values. Scores are scaled before the products and
    kept in fp32. The position-to-content term reads δ(i, j) as every released checkpoint does, not the paper's δ(j, i).
    """
    num_terms = 1 + (keys.relative_key is not None) + (keys.relative_query is not None)
    scale = 1.0 / math.sqrt(query.size(-1) * num_terms)
    content_query = query.transpose(1, 2).float()  # [B, H, Q, D]
    content_key = keys.key.transpose(1, 2).float().mT  # [B, H, D, L]
    scores = content_query @ (content_key * scale)  # [B, H, Q, L]
    if view.relative_rows is not None:
        rows = view.relative_rows if view.relative_rows.dim() == 3 else view.relative_rows[None]
        rows = rows[:, None].expand_as(scores)
        if keys.relative_key is not None:
            by_row = content_query @ (keys.relative_key.permute(1, 2, 0).float() * scale)  # [B, H, Q, R]
            scores = scores + by_row.gather(-1, rows)
        if keys.relative_query is not None:
            by_row = (keys.relative_query.transpose(0, 1).float() * scale) @ content_key  # [B, H, R, L]
            scores = scores + by_row.gather(-2, rows)
    forbidden = ~view.allowed[:, None]
    scores = scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1).masked_fill(forbidden, 0.0).to(keys.value.dtype)
    probabilities = nn.functional.dropout(probabilities, dropout_probability)
    return (probabilities @ keys.value.transpose(1, 2)).transpose(1, 2)


class DisentangledSelfAttention(nn.Module):
    """The projections around `disentangled_attention`. With `share_att_key` the content projections, biases included,
    also project the relative table (V2/V3); without it the table has projections of its own (V1)."""

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
        dropout_probability = self.dropout_probability if self.training else 0.0
        return disentangled_attention(query, keys, view, dropout_probability).flatten(-2)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_size))
