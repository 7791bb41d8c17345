"""The formula in torch operations, one after the other: what the other kernels are measured by, on any device."""

import torch

from deberta_scale.kernels.dropout import kept
from deberta_scale.kernels.signature import Dropout, Keys, View, places_of_queries, score_scale


def attention(query: torch.Tensor, keys: Keys, view: View, dropout: Dropout | None = None) -> torch.Tensor:
    """An `AttentionKernel`. Scores are scaled before the products, and whole: [B, H, Q, L]."""
    scale = score_scale(query.size(-1), keys)
    places = places_of_queries(view)
    length = keys.key.size(1)
    content_query = query.transpose(1, 2).float()  # [B, H, Q, D]
    content_key = keys.key.transpose(1, 2).float().mT  # [B, H, D, L]
    scores = content_query @ (content_key * scale)  # [B, H, Q, L]
    if view.rows_by_distance is not None:
        rows = _rows_of_pairs(view, length)[:, None].expand_as(scores)
        if keys.relative_key is not None:
            by_row = content_query @ (keys.relative_key.permute(1, 2, 0).float() * scale)  # [B, H, Q, R]
            scores = scores + by_row.gather(-1, rows)
        if keys.relative_query is not None:
            by_row = (keys.relative_query.transpose(0, 1).float() * scale) @ content_key  # [B, H, R, L]
            scores = scores + by_row.gather(-2, rows)
    forbidden = ~_allowed(view, places)[:, None]
    scores = scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1).masked_fill(forbidden, 0.0).to(keys.value.dtype)
    if dropout is not None:
        keep = kept(dropout, query.size(2), places, length)
        probabilities = probabilities * keep / (1.0 - dropout.probability)
    return (probabilities @ keys.value.transpose(1, 2)).transpose(1, 2)


def _rows_of_pairs(view: View, length: int) -> torch.Tensor:
    """[1 or B, Q, L]: row of the relative table for each query and key; for a blank query any."""
    assert view.rows_by_distance is not None
    key_places = torch.arange(length, device=view.rows_by_distance.device)
    asking = key_places[None] if view.query_places is None else view.query_places.clamp(min=0)
    return view.rows_by_distance[asking[..., None] - key_places + length - 1]


def _allowed(view: View, places: torch.Tensor) -> torch.Tensor:
    """[B, Q, L] bool: the key is a token of the query's own document."""
    key_places = torch.arange(view.document_starts.size(1), device=places.device)
    start, end = (bound.gather(1, places.clamp(min=0)) for bound in (view.document_starts, view.document_ends))
    end = end.masked_fill(places < 0, 0)
    return (key_places >= start[..., None]) & (key_places < end[..., None])
