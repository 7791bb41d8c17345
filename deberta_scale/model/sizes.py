"""How large a model is, from its config alone: the released sizes, closed-form parameter and FLOP counts.

Imports no torch. Letters of the formulas: L tokens of a row, P predicted ones, E hidden size, W heads x head size,
F intermediate size, R rows of the relative table, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from deberta_scale.config import ModelConfig

BACKWARD_PER_FORWARD = 2.0
"""A matrix product has two gradients, each a product of the same cost."""
DECODER_PASSES = 2
"""Times the enhanced mask decoder runs the last layer (paper, appendix A.8)."""
KEPT_LOGITS_BYTES = 2**29
"""Logits of a micro-batch that stay from forward to backward, in the model's dtype; more are computed twice."""
WORKING_LOGITS_BYTES = 2**26
"""Of what the loss works on at a time: a range of the vocabulary."""
BYTES_PER_WORKING_LOGIT = 10
"""The logit, in 16 bits at least, in fp32, and a temporary in fp32."""

_XSMALL: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
_BASE: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE: dict[str, Any] = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
_XLARGE: dict[str, Any] = {"hidden_size": 1536, "num_attention_heads": 24, "intermediate_size": 6144}


def _first_generation(num_layers: int, shape: Mapping[str, Any]) -> ModelConfig:
    """BPE vocabulary, linear distances, projections of their own for the relative table."""
    return ModelConfig(
        vocab_size=50265,
        num_hidden_layers=num_layers,
        pos_att_type=("c2p", "p2c"),
        share_att_key=False,
        position_buckets=0,
        max_relative_positions=512,
        norm_rel_ebd="none",
        **shape,
    )


def _later_generation(
    num_layers: int, shape: Mapping[str, Any], vocab_size: int = 128100, conv_kernel_size: int = 0
) -> ModelConfig:
    """V2 and V3: shared projections, 256 log buckets, a normalised relative table; V2 has the convolution too."""
    return ModelConfig(vocab_size=vocab_size, num_hidden_layers=num_layers, conv_kernel_size=conv_kernel_size, **shape)


SIZES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "deberta-base": _first_generation(12, _BASE),
        "deberta-large": _first_generation(24, _LARGE),
        "deberta-xlarge": _first_generation(48, _LARGE),
        "v2-xlarge": _later_generation(24, _XLARGE, conv_kernel_size=3),
        "v2-xxlarge": _later_generation(48, _XLARGE, conv_kernel_size=3),
        "v3-xsmall": _later_generation(12, _XSMALL),
        "v3-small": _later_generation(6, _BASE),
        "v3-base": _later_generation(12, _BASE),
        "v3-large": _later_generation(24, _LARGE),
        "mdeberta-v3-base": _later_generation(12, _BASE, vocab_size=251000),
    }
)
"""The released models, by name (official `config.json` files). The encoders of V3 are its discriminators."""


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of the pretraining model, where they are. The tied decoder is the word table, counted once."""

    word_embeddings: int
    position_embeddings: int
    """Used by the mask decoder, or at the input in the baseline."""
    encoder: int
    """Layers, the convolution, and the LayerNorm of the relative table."""
    relative_table: int
    head: int
    """The masked language modelling head without the tied word table; its vocabulary bias is its own."""
    other: int
    """LayerNorm of the embeddings and, for narrow word tables, their projection."""

    @property
    def total(self) -> int:
        """All of them, position table and head included."""
        return self.released + self.position_embeddings + self.head

    @property
    def released(self) -> int:
        """What stock transformers calls the model: without position table and head, which it drops."""
        return self.word_embeddings + self.encoder + self.relative_table + self.other


def parameter_count(model: ModelConfig) -> ParameterCount:
    """Parameters of `deberta_scale.model.pretraining.PretrainingModel`, without building it."""
    hidden, word_width = model.hidden_size, model.word_embedding_size
    relative_rows = _relative_rows(model)
    norm_of_table = _norm(hidden) if relative_rows and model.norm_rel_ebd == "layer_norm" else 0
    position_width = word_width if model.position_biased_input else hidden
    projection = hidden * word_width if word_width != hidden else 0
    return ParameterCount(
        word_embeddings=model.vocab_size * word_width,
        position_embeddings=model.max_position_embeddings * position_width,
        encoder=model.num_hidden_layers * layer_parameters(model) + _convolution_parameters(model) + norm_of_table,
        relative_table=relative_rows * hidden,
        head=_linear(hidden, word_width) + _norm(word_width) + model.vocab_size,
        other=_norm(hidden) + projection,
    )


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of one layer."""
    hidden, width = model.hidden_size, _attention_width(model)
    own_projections = 0 if model.share_att_key else len(relative_terms(model))
    attention = (3 + own_projections) * _linear(hidden, width) + _linear(width, hidden) + _norm(hidden)
    feed_forward = _linear(hidden, model.intermediate_size) + _linear(model.intermediate_size, hidden) + _norm(hidden)
    return attention + feed_forward


def training_flops_per_sequence(
    model: ModelConfig, sequence_length: int, masking_probability: float, micro_sequences: int = 1
) -> float:
    """FLOPs (2 for a multiply-add) of forward and backward of one row of `sequence_length` tokens in pretraining.

    Matrix products only, as this project's model computes them, three times the forward ones; recomputation under
    activation checkpointing is not counted, so that a rate in these FLOPs compares runs with and without it. Terms:

    - each layer but the last: query, key and value projections, c2c, c2p and p2c scores, probabilities x values, output
      projection, feed-forward. c2p and p2c are products with all R rows of the table, gathered afterwards;
    - each layer: the relative table projected once for each term. A micro-batch of `micro_sequences` rows shares it,
      and a row bears its part; the default is the cost of a row alone;
    - the last layer: keys and values once at full length; queries, scores, output and feed-forward twice at the
      predicted places only, except p2c, which meets all keys in both passes (enhanced mask decoder, paper A.8);
    - the convolution beside the first layer, the projection of narrow word embeddings;
    - the head's dense layer and the product with the vocabulary, at the predicted places.

    The baseline has no relative terms and no decoder: all layers are ordinary.
    """
    predicted = masking_probability * sequence_length
    ordinary_layers = model.num_hidden_layers - (0 if model.baseline else 1)
    layer = _key_flops(model, sequence_length) + _query_flops(model, sequence_length, sequence_length)
    forward = (
        _input_flops(model, sequence_length)
        + ordinary_layers * layer
        + model.num_hidden_layers * _relative_projection_flops(model) / micro_sequences
        + _head_flops(model, predicted)
    )
    if not model.baseline:
        forward += _key_flops(model, sequence_length)
        forward += DECODER_PASSES * _query_flops(model, predicted, sequence_length)
    return (1.0 + BACKWARD_PER_FORWARD) * forward


def pieces_at_once(num_predicted: int) -> int:
    """Pieces of the vocabulary whose logits the loss works on at a time."""
    return max(1, WORKING_LOGITS_BYTES // (BYTES_PER_WORKING_LOGIT * max(1, num_predicted)))


def kept_logits_bytes(num_predicted: int, vocabulary: int, element_bytes: int) -> int:
    """What stays of logits from forward to backward: all, or 0 where that is more than KEPT_LOGITS_BYTES."""
    whole = num_predicted * vocabulary * element_bytes
    return whole if whole <= KEPT_LOGITS_BYTES else 0


def relative_terms(model: ModelConfig) -> tuple[str, ...]:
    """c2p and/or p2c; none in the baseline."""
    return model.pos_att_type if model.relative_attention else ()


def _relative_rows(model: ModelConfig) -> int:
    return 2 * model.relative_span if model.relative_attention else 0


def _attention_width(model: ModelConfig) -> int:
    return model.num_attention_heads * model.head_size


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _norm(width: int) -> int:
    return 2 * width


def _convolution_parameters(model: ModelConfig) -> int:
    if not model.conv_kernel_size:
        return 0
    return _linear(model.conv_kernel_size * model.hidden_size, model.hidden_size) + _norm(model.hidden_size)


def _product(rows: float, inner: float, columns: float) -> float:
    """FLOPs of a [rows, inner] x [inner, columns] product."""
    return 2.0 * rows * inner * columns


def _input_flops(model: ModelConfig, length: int) -> float:
    """Projection of narrow word embeddings, and the convolution."""
    hidden, word_width = model.hidden_size, model.word_embedding_size
    projection = _product(length, word_width, hidden) if word_width != hidden else 0.0
    return projection + _product(length, model.conv_kernel_size * hidden, hidden)


def _key_flops(model: ModelConfig, length: int) -> float:
    """Key and value projections of one layer."""
    return 2 * _product(length, model.hidden_size, _attention_width(model))


def _query_flops(model: ModelConfig, queries: float, keys: int) -> float:
    """One layer from its query projection to its feed-forward output, for `queries` places that meet `keys` others."""
    hidden, width, rows = model.hidden_size, _attention_width(model), _relative_rows(model)
    terms = relative_terms(model)
    projections = 2 * _product(queries, hidden, width)  # query and output
    content = 2 * _product(queries, width, keys)  # scores, and probabilities x values
    content_to_position = _product(queries, width, rows) if "c2p" in terms else 0.0
    position_to_content = _product(rows, width, keys) if "p2c" in terms else 0.0
    feed_forward = 2 * _product(queries, hidden, model.intermediate_size)
    return projections + content + content_to_position + position_to_content + feed_forward


def _relative_projection_flops(model: ModelConfig) -> float:
    """The relative table through one layer's projections."""
    return len(relative_terms(model)) * _product(_relative_rows(model), model.hidden_size, _attention_width(model))


def _head_flops(model: ModelConfig, predicted: float) -> float:
    word_width = model.word_embedding_size
    return _product(predicted, model.hidden_size, word_width) + _product(predicted, word_width, model.vocab_size)
