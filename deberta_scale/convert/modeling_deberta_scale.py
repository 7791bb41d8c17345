# Copyright 2026 The deberta-scale authors. Licensed under the Apache License, Version 2.0.
"""DeBERTa with the mask decoder it was trained with, for `transformers`.

    pipeline("fill-mask", model=DIRECTORY, trust_remote_code=True)

This file lies beside the weights and needs `torch` and `transformers` only. Everything but masked language modelling
works with stock classes, without it.

Why it exists: the encoder here is stock `DebertaV2Model`, but stock `DebertaV2ForMaskedLM` predicts from the last
layer's ordinary output, and the model was never trained to predict from that. The enhanced mask decoder (DeBERTa paper,
section 3.2 and appendix A.8; official `masked_language_model.py`) takes the output of the layer before, adds absolute
positions to the queries and runs the last layer twice. The position table that this needs is not loaded by stock
classes either.

Shape letters: B batch, L length, E hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Model,
    DebertaV2PreTrainedModel,
    make_log_bucket_position,
)

DECODER_PASSES = 2


class PredictionHead(nn.Module):
    """dense → gelu → LayerNorm → product with the word embeddings + a bias for each piece of the vocabulary.

    As wide as the word embeddings, which may be narrower than E; the stock head is always E wide.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = getattr(config, "embedding_size", config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, width)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """[B, L, E] and the word table [V, width] → logits [B, L, V]."""
        transformed = self.LayerNorm(nn.functional.gelu(self.dense(hidden)))
        return nn.functional.linear(transformed, word_embeddings, self.bias)


class DebertaScaleForMaskedLM(DebertaV2PreTrainedModel):
    """Encoder, enhanced mask decoder and the vocabulary head, which is tied to the word embeddings.

    With `position_biased_input` (the BERT-like baseline) there is no decoder: predictions come from the last layer.
    """

    lm_predictions: nn.ModuleDict

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.deberta = DebertaV2Model(config)
        self.has_decoder = not config.position_biased_input
        if self.has_decoder:
            # Where the official checkpoints have it. Stock embeddings look it up and leave the result unused.
            table = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            self.deberta.embeddings.position_embeddings = table
        self.lm_predictions = nn.ModuleDict({"lm_head": PredictionHead(config)})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PredictionHead):
            nn.init.zeros_(module.bias)

    def get_output_embeddings(self) -> nn.Module:
        """The word table: it is both input and output."""
        return self.deberta.embeddings.word_embeddings

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.deberta.embeddings.word_embeddings = new_embeddings

    def resize_token_embeddings(self, *arguments: Any, **keywords: Any) -> nn.Embedding:
        """As every `transformers` model; the bias of a new piece is zero."""
        table: nn.Embedding = super().resize_token_embeddings(*arguments, **keywords)
        head: Any = self.lm_predictions["lm_head"]
        kept = head.bias[: table.num_embeddings].detach()
        added = kept.new_zeros(table.num_embeddings - len(kept))
        head.bias = nn.Parameter(torch.cat([kept, added]), requires_grad=head.bias.requires_grad)
        return table

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
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Logits [B, L, V] at every place, and with `labels` [B, L] the mean loss where they are not -100.

        `attention_mask` is [B, L], 1 for tokens and 0 for padding, which may be on either side. What comes out at
        padding means nothing. Of a model with decoder, `hidden_states` are the embeddings, the outputs of all layers
        but the last and the output of the decoder; `attentions` are the layers' and those of the decoder's last pass.

        Raises ValueError for texts longer than the model's table of positions.
        """
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        batch_size, length = given.shape[:2]
        longest = self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"{length} tokens, the model has {longest} positions; call the tokenizer with truncation")
        if attention_mask is None:
            attention_mask = torch.ones(batch_size, length, dtype=torch.long, device=given.device)
        is_token = attention_mask.long()
        if position_ids is None:
            position_ids = places(is_token)

        embedded = self.deberta.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            mask=is_token,
            inputs_embeds=inputs_embeds,
        )
        with_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        states, attentions = self._run_layers(embedded, is_token, position_ids, with_attentions)
        logits = self.lm_predictions["lm_head"](states[-1], self.deberta.embeddings.word_embeddings.weight)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.to(logits.device).flatten())

        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=states if with_states else None,
            attentions=attentions if with_attentions else None,
        )
        return output if return_dict or (return_dict is None and self.config.return_dict) else output.to_tuple()

    def _run_layers(
        self, embedded: torch.Tensor, is_token: torch.Tensor, position_ids: torch.Tensor, with_attentions: bool
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """All hidden states [B, L, E], the one to predict from last, and all attention probabilities.

        Not `DebertaV2Encoder.forward`: that would run the last layer once more, for a result nobody reads.
        """
        encoder = self.deberta.encoder
        allowed = encoder.get_attention_mask(is_token)
        table = encoder.get_rel_embedding()
        distances = None
        if encoder.relative_attention:
            distances = relative_distances(embedded.size(1), encoder, embedded.device)
        states: tuple[torch.Tensor, ...] = (embedded,)
        attentions: tuple[torch.Tensor, ...] = ()

        def run(layer: nn.Module, hidden: torch.Tensor, queries: torch.Tensor | None) -> Any:
            # by position: what is given by name gets no gradient under reentrant checkpointing
            return layer(hidden, allowed, queries, distances, table, with_attentions)

        ordinary = encoder.layer[:-1] if self.has_decoder else encoder.layer
        for number, layer in enumerate(ordinary):
            hidden, probabilities = run(layer, states[-1], None)
            if number == 0 and encoder.conv is not None:
                hidden = encoder.conv(embedded, hidden, is_token)
            states, attentions = (*states, hidden), (*attentions, probabilities)
        if self.has_decoder:
            hidden = states[-1]
            queries = hidden + self.deberta.embeddings.position_embeddings(position_ids)
            for _ in range(DECODER_PASSES):
                queries, probabilities = run(encoder.layer[-1], hidden, queries)
            states, attentions = (*states, queries), (*attentions, probabilities)
        return states, attentions


def places(is_token: torch.Tensor) -> torch.Tensor:
    """[B, L] int64: place of each token in its text, counted from the first token, wherever the padding is."""
    first = is_token.argmax(-1, keepdim=True)
    return (torch.arange(is_token.size(-1), device=is_token.device) - first).clamp(min=0)


def relative_distances(length: int, encoder: Any, device: torch.device) -> torch.Tensor:
    """[1, L, L] int64: distance from key to query, or its log bucket.

    Distances beyond the trained ones fall into the last trained bucket, as in the official code. Stock classes put
    those behind a query into a bucket of their own that no training ever reached.
    """
    order = torch.arange(length, device=device)
    distances = order[:, None] - order[None, :]
    furthest = encoder.max_relative_positions - 1
    if encoder.position_buckets > 0:
        distances = distances.clamp(-furthest, furthest)
        distances = make_log_bucket_position(distances, encoder.position_buckets, encoder.max_relative_positions)
    return distances.long()[None]
