# Copyright 2026 The deberta-scale authors. Licensed under the Apache License, Version 2.0.
"""Labels for words with the official DeBERTa head, for `transformers`.

    pipeline("token-classification", model=DIRECTORY, trust_remote_code=True)

This file lies beside the weights and needs `torch` and `transformers` only. The encoder is stock `DebertaV2Model`. The
head has a layer (`proj`, gelu) before the classifier that stock `DebertaV2ForTokenClassification` has not, so that the
stock class would give other labels from the same weights.

Shape letters: B batch, L length, N labels.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Model, DebertaV2PreTrainedModel


class DebertaScaleForTokenClassification(DebertaV2PreTrainedModel):
    """Encoder → dense → gelu → dropout → classifier."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deberta = DebertaV2Model(config)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.cls_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Logits [B, L, N], and with `labels` [B, L] the mean loss where they are not -100."""
        encoded = self.deberta(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        projected = nn.functional.gelu(self.proj(encoded.last_hidden_state))
        logits = self.classifier(self.dropout(projected))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.to(logits.device).flatten())
        output = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output if return_dict or (return_dict is None and self.config.return_dict) else output.to_tuple()
