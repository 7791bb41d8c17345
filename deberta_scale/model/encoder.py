"""Embeddings, layers, encoder: from token ids to hidden states.

Attribute names are those of the official checkpoints, so that state dicts need no renaming.
Shape letters: B batch, L length, E hidden size, R rows of the relative table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deberta_scale.config import ModelConfig
from deberta_scale.kernels.residual_norm import residual_norm
from deberta_scale.kernels.signature import Keys, View, document_bounds
from deberta_scale.model.attention import DisentangledSelfAttention
from deberta_scale.model.relative import rows_by_distance


class Encoded(NamedTuple):
    """Hidden states, and what a further layer would need to go on from them."""

    hidden: torch.Tensor
    """[B, L, E]"""
    relative_table: torch.Tensor | None
    """[R, E], normalised; None in the baseline."""
    view: View


class Embeddings(nn.Module):
    """Word embeddings (plus positions in the baseline), projected to E when narrower, normalised; padding is zero."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.word_embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        # In DeBERTa the mask decoder adds positions to hidden states, in the baseline they are added to words.
        position_width = width if config.position_biased_input else config.hidden_size
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, position_width)
        self.position_biased_input = config.position_biased_input
        self.embed_proj = nn.Linear(width, config.hidden_size, bias=False) if width != config.hidden_size else None
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, token_ids: torch.Tensor, segment_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        embedded = self.word_embeddings(token_ids)
        if self.position_biased_input:
            embedded = embedded + self.position_embeddings(position_ids)
        if self.embed_proj is not None:
            embedded = self.embed_proj(embedded)
        is_token = (segment_ids > 0).unsqueeze(-1)
        return self.dropout(self.LayerNorm(embedded) * is_token)


class ResidualNorm(nn.LayerNorm):
    """dropout → + residual → LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.layer_norm_eps)
        self.dropout_probability = config.hidden_dropout_prob

    def forward(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        drop_probability = self.dropout_probability if self.training else 0.0
        return residual_norm(states, residual, self.weight, self.bias, self.eps, drop_probability)


class ResidualOutput(nn.Module):
    """dense → dropout → + residual → LayerNorm: the end of the attention block and of the feed-forward block."""

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = ResidualNorm(config)

    def forward(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(states), residual)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = DisentangledSelfAttention(config)
        self.output = ResidualOutput(config.num_attention_heads * config.head_size, config)

    def forward(self, query_states: torch.Tensor, keys: Keys, view: View) -> torch.Tensor:
        return self.output(self.self(query_states, keys, view), query_states)


class Intermediate(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.dense(states))


class Layer(nn.Module):
    """One transformer layer, post-LayerNorm. Queries and keys are given apart: the mask decoder asks twice of one set
    of keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def keys(self, hidden: torch.Tensor, relative_table: torch.Tensor | None) -> Keys:
        """What queries of this layer meet in hidden states [B, L, E]."""
        return self.attention.self.keys(hidden, relative_table)

    def forward(self, query_states: torch.Tensor, keys: Keys, view: View) -> torch.Tensor:
        """[B, Q, E] → [B, Q, E]."""
        attended = self.attention(query_states, keys, view)
        return self.output(self.intermediate(attended), attended)


class SegmentConv1d(nn.Conv1d):
    """A convolution that sees only places of the same document, as if each stood alone between zeros."""

    def forward(self, hidden: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """[B, L, E] and [B, L] → [B, L, E]; padding is zero."""
        reach = self.kernel_size[0] // 2
        padded = nn.functional.pad(hidden, (0, 0, reach, reach))
        segments = nn.functional.pad(segment_ids, (reach, reach))
        windows = padded.unfold(1, self.kernel_size[0], 1)  # [B, L, E, kernel]
        same = segments.unfold(1, self.kernel_size[0], 1) == segment_ids.unsqueeze(-1)  # [B, L, kernel]
        windows = windows * same.unsqueeze(2)
        convolved = nn.functional.linear(windows.flatten(2), self.weight.flatten(1), self.bias)
        return convolved * (segment_ids > 0).unsqueeze(-1)


class ConvLayer(nn.Module):
    """The convolution of V2-XLarge and larger: from the embeddings, added to the first layer's output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv = SegmentConv1d(config.hidden_size, config.hidden_size, config.conv_kernel_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = nn.GELU() if config.conv_act == "gelu" else nn.Tanh()

    def forward(self, embedded: torch.Tensor, first_output: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        convolved = self.activation(self.dropout(self.conv(embedded, segment_ids)))
        return self.LayerNorm(first_output + convolved) * (segment_ids > 0).unsqueeze(-1)


class Encoder(nn.Module):
    """All layers, and the table of relative positions they share."""

    def __init__(self, config: ModelConfig, checkpoint_activations: bool) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = checkpoint_activations
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.conv = ConvLayer(config) if config.conv_kernel_size else None
        if config.relative_attention:
            self.rel_embeddings = nn.Embedding(2 * config.relative_span, config.hidden_size)
            if config.norm_rel_ebd == "layer_norm":
                self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def relative_table(self, device: torch.device) -> torch.Tensor | None:
        """[R, E], normalised where the config says so. Read through the embedding module, so that ZeRO-3 gathers it."""
        if not self.config.relative_attention:
            return None
        table = self.rel_embeddings(torch.arange(2 * self.config.relative_span, device=device))
        return self.LayerNorm(table) if self.config.norm_rel_ebd == "layer_norm" else table

    def forward(self, embedded: torch.Tensor, segment_ids: torch.Tensor, num_layers: int) -> Encoded:
        """Run the first `num_layers` layers on embeddings [B, L, E]."""
        rows = (
            rows_by_distance(segment_ids.size(1), self.config, segment_ids.device)
            if self.config.relative_attention
            else None
        )
        view = View(*document_bounds(segment_ids), rows, query_places=None)
        table = self.relative_table(segment_ids.device)
        hidden = embedded
        for number, layer in enumerate(self.layer[:num_layers]):
            hidden = self.run(_ordinary_pass, layer, hidden, table, view)
            if number == 0 and self.conv is not None:
                hidden = self.conv(embedded, hidden, segment_ids)
        return Encoded(hidden, table, view)

    def run(self, function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        """Call, remembering or recomputing activations as configured. Only non-reentrant checkpointing survives a
        layer that runs twice."""
        if self.checkpoint_activations and self.training:
            recomputed: torch.Tensor = checkpoint(function, *arguments, use_reentrant=False)
            return recomputed
        return function(*arguments)


def _ordinary_pass(layer: Layer, hidden: torch.Tensor, table: torch.Tensor | None, view: View) -> torch.Tensor:
    return layer(hidden, layer.keys(hidden, table), view)


class Deberta(nn.Module):
    """Embeddings and encoder: what fine-tuning starts from and stock `DebertaV2Model` loads."""

    def __init__(self, config: ModelConfig, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, checkpoint_activations)

    def forward(
        self,
        token_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        position_ids: torch.Tensor,
        num_layers: int | None = None,
    ) -> Encoded:
        """Encode rows [B, L] through the first `num_layers` layers, by default all."""
        embedded = self.embeddings(token_ids, segment_ids, position_ids)
        layers = self.config.num_hidden_layers if num_layers is None else num_layers
        return self.encoder(embedded, segment_ids, layers)
