"""Relative distances: from two places to a row of the relative table. Pure functions.

S is the span: half the rows of the table. Distance 0 maps to row S.
"""

import math
from functools import lru_cache

import torch

from deberta_scale.config import ModelConfig


def log_buckets(distances: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Map distances (int64) to signed log buckets, as the official `make_log_bucket_position`.

    Up to `num_buckets // 2` a distance is its own bucket; beyond, buckets grow logarithmically to `max_distance` - 1.
    Distances are clamped there, so that a longer one falls into the last trained bucket (transformers does not clamp).
    """
    middle = num_buckets // 2
    clamped = distances.clamp(1 - max_distance, max_distance - 1)
    size = clamped.abs()
    # float32, as the official code and transformers: in higher precision a distance exactly on a border could move
    growth = torch.log(size.clamp(min=middle).float() / middle) / math.log((max_distance - 1) / middle)
    logarithmic = (middle + torch.ceil(growth * (middle - 1))).long() * clamped.sign()
    return torch.where(size <= middle, clamped, logarithmic)


def relative_rows(distances: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Rows of the relative table for distances (query place - key place, int64): clamp(bucket + S, 0, 2S - 1).

    Paper, section 3.1 (δ), with the buckets of the V2/V3 release when `position_buckets` is not 0.
    """
    span = config.relative_span
    if config.position_buckets:
        distances = log_buckets(distances, config.position_buckets, config.max_relative_positions)
    return (distances + span).clamp(0, 2 * span - 1)


@lru_cache(maxsize=32)
def rows_by_distance(length: int, config: ModelConfig, device: torch.device) -> torch.Tensor:
    """[2 * length - 1] int64: the row of the table for each distance in a row of tokens, 1 - length first."""
    with torch.inference_mode(False):  # what the cache keeps must serve training too
        return relative_rows(torch.arange(1 - length, length, device=device), config)
