"""Small models and hand-made rows for the tests of the model."""

from typing import Any

import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ModelConfig


def small_model_config(**changes: Any) -> ModelConfig:
    """Three layers of 32, two heads, no dropout: V3 style unless changed."""
    settings: dict[str, Any] = {
        "vocab_size": 90,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "max_relative_positions": 64,
        "position_buckets": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    return ModelConfig(**settings | changes)


def batch_of(rows: list[list[int]], length: int, predicted: list[list[int]], seed: int = 0) -> MaskedBatch:
    """Rows given as the lengths of their documents, padded to `length`; `predicted` names the places in each row."""
    generator = torch.Generator().manual_seed(seed)
    token_ids, segment_ids, position_ids = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    for number, documents in enumerate(rows):
        start = 0
        for segment, size in enumerate(documents, start=1):
            token_ids[number, start : start + size] = torch.randint(4, 90, (size,), generator=generator)
            segment_ids[number, start : start + size] = segment
            position_ids[number, start : start + size] = torch.arange(size)
            start += size
    positions = [row * length + place for row, places in enumerate(predicted) for place in places]
    return MaskedBatch(
        token_ids,
        segment_ids,
        position_ids,
        predict_positions=torch.tensor(positions, dtype=torch.long),
        predict_ids=torch.randint(4, 90, (len(positions),), generator=generator),
        max_predictions_per_row=max(map(len, predicted)),
    )
