"""Heads for fine-tuning, each an encoder with a few layers on top. Rows hold one text (or pair) each.

Parameter names are the official ones, which are those of transformers too (`pooler.dense`, `classifier`, `qa_outputs`).
Shape letters: B batch, L length, E hidden size, C choices, N labels.
"""

import torch
from torch import nn

from deberta_scale.config import ModelConfig
from deberta_scale.model.encoder import Deberta
from deberta_scale.model.initial import initialise


class Pooler(nn.Module):
    """The first token's state → dropout → dense → gelu (official `ContextPooler`)."""

    def __init__(self, config: ModelConfig, dropout_probability: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_probability)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, L, E] → [B, E]."""
        return nn.functional.gelu(self.dense(self.dropout(hidden[:, 0])))


class FineTuningModel(nn.Module):
    """An encoder that every head stands on."""

    def __init__(self, config: ModelConfig, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.config = config
        self.deberta = Deberta(config, checkpoint_activations)

    def initialise(self) -> None:
        """As in pretraining; weights to start from are loaded after it."""
        initialise(self, self.config.initializer_range)

    def hidden(self, token_ids: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        """[B, L] ids and 1 (text) or 0 (padding) for each place → [B, L, E]."""
        positions = torch.arange(token_ids.size(1), device=token_ids.device).expand_as(token_ids)
        encoded: torch.Tensor = self.deberta(token_ids, segment_ids, positions).hidden
        return encoded


class SequenceModel(FineTuningModel):
    """One label, or one number, for each row. `num_labels` 1 is a regression."""

    def __init__(
        self, config: ModelConfig, num_labels: int, head_dropout: float, checkpoint_activations: bool = False
    ) -> None:
        super().__init__(config, checkpoint_activations)
        self.pooler = Pooler(config, config.hidden_dropout_prob)
        self.dropout = nn.Dropout(head_dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.initialise()

    def forward(self, token_ids: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        """[B, L] → logits [B, N], fp32."""
        pooled = self.pooler(self.hidden(token_ids, segment_ids))
        logits: torch.Tensor = self.classifier(self.dropout(pooled)).float()
        return logits


class MultipleChoiceModel(SequenceModel):
    """One score for each of a question's choices; the same weights read every choice."""

    def __init__(self, config: ModelConfig, head_dropout: float, checkpoint_activations: bool = False) -> None:
        super().__init__(config, 1, head_dropout, checkpoint_activations)

    def forward(self, token_ids: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        """[B, C, L] → logits [B, C], fp32."""
        scores = super().forward(token_ids.flatten(0, 1), segment_ids.flatten(0, 1))
        return scores.view(token_ids.shape[:2])


class TokenModel(FineTuningModel):
    """One label for each token: dense → gelu → dropout → classifier (official `NERModel`)."""

    def __init__(
        self, config: ModelConfig, num_labels: int, head_dropout: float, checkpoint_activations: bool = False
    ) -> None:
        super().__init__(config, checkpoint_activations)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(head_dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.initialise()

    def forward(self, token_ids: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        """[B, L] → logits [B, L, N], fp32."""
        projected = nn.functional.gelu(self.proj(self.hidden(token_ids, segment_ids)))
        logits: torch.Tensor = self.classifier(self.dropout(projected)).float()
        return logits


class SpanModel(FineTuningModel):
    """Where an answer begins and ends (transformers' `DebertaV2ForQuestionAnswering`)."""

    def __init__(self, config: ModelConfig, checkpoint_activations: bool = False) -> None:
        super().__init__(config, checkpoint_activations)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.initialise()

    def forward(self, token_ids: torch.Tensor, segment_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, L] → logits of the first and of the last token, [B, L] each, fp32; padding can be neither."""
        logits: torch.Tensor = self.qa_outputs(self.hidden(token_ids, segment_ids)).float()
        logits = logits.masked_fill(segment_ids.unsqueeze(-1) == 0, torch.finfo(logits.dtype).min)
        return logits[..., 0], logits[..., 1]
