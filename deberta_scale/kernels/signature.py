"""What every attention kernel takes and gives: one signature, so that one may stand for another.

Shape letters, here and in the kernels: B batch, L keys, Q queries (L, or fewer in the mask decoder), H heads, D head
size, R rows of the relative table.
"""

import math
from typing import NamedTuple, Protocol

import torch


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


class View(NamedTuple):
    """What each query may look at, and from how far. A named tuple, as all that passes between modules here: ZeRO-3
    follows the tensors in tuples."""

    document_starts: torch.Tensor
    """[B, L] int64: the first place of the document that each place belongs to; 0 at padding."""
    document_ends: torch.Tensor
    """[B, L] int64: the place after its last; 0 at padding, which nobody sees and which sees nothing."""
    rows_by_distance: torch.Tensor | None
    """[2L - 1] int64: row of the relative table for each distance (query place - key place), from 1 - L to L - 1. None
    in the baseline."""
    query_places: torch.Tensor | None
    """[B, Q] int64: the place each query asks from, ascending in a row; -1 for a blank after the last, which sees
    nothing. None: every place asks."""


class Dropout(NamedTuple):
    """Which attention probabilities are dropped: a pure function of the seed and of (row, head, query place, key
    place), so that nothing is stored for the backward pass and every kernel drops the same."""

    probability: float
    """Of being dropped, in (0, 1)."""
    seed: int
    """Below 2**63."""


class AttentionKernel(Protocol):
    """softmax(Qc·Kc + Qc·Kr[δ(i,j)] + Kc·Qr[δ(i,j)]) V, each product scaled by 1/sqrt(D * number of terms).

    `query` is [B, Q, H, D]; returns [B, Q, H, D] in the dtype of the values. Scores are kept in fp32. A query that sees
    nothing gets zeros. The position-to-content term reads δ(i, j) as every released checkpoint does, not the paper's
    δ(j, i). Differentiable by the query and by all four tensors of the keys.
    """

    def __call__(self, query: torch.Tensor, keys: Keys, view: View, dropout: Dropout | None = None) -> torch.Tensor: ...


def score_scale(head_size: int, keys: Keys) -> float:
    """1 / sqrt(D * number of terms)."""
    num_terms = 1 + (keys.relative_key is not None) + (keys.relative_query is not None)
    return 1.0 / math.sqrt(head_size * num_terms)


def document_bounds(segment_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(document_starts, document_ends) of rows [B, L] in which the places of a document, numbered from 1, lie side by
    side; 0 is padding."""
    length = segment_ids.size(1)
    after = torch.arange(1, length + 1, device=segment_ids.device)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins, ends = (torch.nn.functional.pad(changes, side, value=True) for side in ((1, 0), (0, 1)))
    first = torch.where(begins, after - 1, 0).cummax(1).values
    last = torch.where(ends, after, length).flip(1).cummin(1).values.flip(1)
    is_token = segment_ids > 0
    return first * is_token, last * is_token


def places_of_queries(view: View) -> torch.Tensor:
    """[B, Q] int64: where each query asks from; -1 for a blank."""
    if view.query_places is not None:
        return view.query_places
    return torch.arange(view.document_starts.size(1), device=view.document_starts.device).expand_as(
        view.document_starts
    )
