"""The model for each kind of head."""

from deberta_scale.config import ModelConfig
from deberta_scale.config_sift import Head
from deberta_scale.model.heads import FineTuningModel, MultipleChoiceModel, SequenceModel, SpanModel, TokenModel


def model_with_head(
    head: Head, config: ModelConfig, num_labels: int, head_dropout: float, checkpoint_activations: bool = False
) -> FineTuningModel:
    """`num_labels` is 0 where labels are numbers, choices or places. `head_dropout` is that before the last layer; a
    span's head has none."""
    if head == "span":
        return SpanModel(config, checkpoint_activations)
    if head == "choice":
        return MultipleChoiceModel(config, head_dropout, checkpoint_activations)
    if head == "tokens":
        return TokenModel(config, num_labels, head_dropout, checkpoint_activations)
    return SequenceModel(config, max(1, num_labels), head_dropout, checkpoint_activations)
