"""The formula in blocks, in torch operations: no gather, no scatter, and no matrix of scores kept for backward.

The row of the relative table depends on i - j alone. So the table is laid out once by distance, and the products of a
block of queries with the stretch of it that they need hold all their terms, each row of the block one place further on:

    columns of the product:   . . a b c d      query 0       a b c d
                              . a b c d .      query 1   →   a b c d     the same memory, read with rows
                              a b c d . .      query 2       a b c d     that are one element shorter

Backward recomputes the scores from the logarithm of their sums and writes through the same kind of view.
"""

from typing import Any

import torch

from deberta_scale.kernels.dropout import kept
from deberta_scale.kernels.signature import Dropout, Keys, View, score_scale

BLOCK = 128
"""Queries, or keys, whose products with the relative table are made at once."""


def attention(query: torch.Tensor, keys: Keys, view: View, dropout: Dropout | None = None) -> torch.Tensor:
    """An `AttentionKernel`. Queries that are not all places are laid out among all of them."""
    if view.query_places is None:
        attended: torch.Tensor = _Skewed.apply(query, *keys, view, dropout)
        return attended
    rows = torch.arange(query.size(0), device=query.device)[:, None]
    # blanks go to a place after the last, which is cut off again
    places = torch.where(view.query_places < 0, keys.key.size(1), view.query_places)
    spread = query.new_zeros(query.size(0), keys.key.size(1) + 1, *query.shape[2:]).index_put((rows, places), query)
    attended = _Skewed.apply(spread[:, :-1], *keys, view._replace(query_places=None), dropout)
    return torch.nn.functional.pad(attended, (0, 0, 0, 0, 0, 1))[rows, places]


class _Skewed(torch.autograd.Function):
    """All places ask. Rows of the batch one after the other, so that the scores of one are in memory at a time."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, relative_key: Any, relative_query: Any, *rest: Any) -> Any:
        view, dropout = rest
        keys = Keys(key, value, relative_key, relative_query)
        terms = _Terms(keys, view, query.size(-1))
        output = torch.empty_like(value)
        log_sums = query.new_empty(query.size(0), query.size(2), query.size(1), dtype=torch.float32)
        for row in range(query.size(0)):
            scores = terms.scores(query[row], key[row], row)
            log_sums[row] = scores.logsumexp(-1).clamp(min=torch.finfo(torch.float32).min)
            probabilities = scores.sub_(log_sums[row][..., None]).exp_()
            if dropout is not None:
                probabilities *= _kept_in_row(dropout, row, query) / (1.0 - dropout.probability)
            output[row] = (probabilities @ _heads_first(value[row])).transpose(0, 1)
        ctx.save_for_backward(query, *keys, *view, output, log_sums)
        ctx.dropout = dropout
        return output

    @staticmethod
    def backward(ctx: Any, output_gradient: Any) -> Any:
        query, key, value, relative_key, relative_query, *view_tensors, output, log_sums = ctx.saved_tensors
        keys, view, dropout = Keys(key, value, relative_key, relative_query), View(*view_tensors), ctx.dropout
        terms = _Terms(keys, view, query.size(-1))
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for row in range(query.size(0)):
            probabilities = terms.scores(query[row], key[row], row).sub_(log_sums[row][..., None]).exp_()
            upstream = _heads_first(output_gradient[row])
            towards_probabilities = upstream @ _heads_first(value[row]).mT
            dropped = probabilities
            if dropout is not None:
                keep = _kept_in_row(dropout, row, query) / (1.0 - dropout.probability)
                dropped = probabilities * keep
                towards_probabilities *= keep
            gradients[2][row] = (dropped.mT @ upstream).transpose(0, 1)
            mean = (upstream * _heads_first(output[row])).sum(-1, keepdim=True)
            towards_scores = probabilities * (towards_probabilities - mean)
            of_query, of_key = terms.gradients(towards_scores, query[row], key[row])
            gradients[0][row], gradients[1][row] = of_query.transpose(0, 1), of_key.transpose(0, 1)
        return (*gradients, *terms.table_gradients(), None, None)


class _Terms:
    """The three terms of the scores of one row at a time, and the gradients of their factors."""

    def __init__(self, keys: Keys, view: View, head_size: int) -> None:
        self.keys, self.view, self.scale = keys, view, score_scale(head_size, keys)
        self.length = keys.key.size(1)
        self.places = torch.arange(self.length, device=keys.key.device)
        by_distance = view.rows_by_distance
        # [H, 2L - 1, D]: content-to-position by falling distance, since j grows along a row of scores; the other by
        # rising distance, since i grows along a column
        self.falling = _by_distance(keys.relative_key, None if by_distance is None else by_distance.flip(0))
        self.rising = _by_distance(keys.relative_query, by_distance)
        self.of_falling, self.of_rising = (
            None if table is None else torch.zeros_like(table) for table in (self.falling, self.rising)
        )

    def scores(self, query: torch.Tensor, key: torch.Tensor, row: int) -> torch.Tensor:
        """[H, L, L] fp32 of queries and keys [L, H, D]; -inf where a query may not look."""
        asking, asked = _heads_first(query) * self.scale, _heads_first(key)
        scores = asking @ asked.mT
        for first, last, window in self._blocks():
            if self.falling is not None:
                scores[:, first:last] += _skewed(asking[:, first:last] @ self.falling[:, window].mT, self.length)
            if self.rising is not None:
                columns = _skewed(asked[:, first:last] @ (self.rising[:, window] * self.scale).mT, self.length)
                scores[:, :, first:last] += columns.mT
        start, end = (bound[row][:, None] for bound in (self.view.document_starts, self.view.document_ends))
        return scores.masked_fill_((self.places < start) | (self.places >= end), float("-inf"))

    def gradients(
        self, towards_scores: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of queries and keys, each [H, L, D]; those of the tables are added up."""
        asking, asked = _heads_first(query), _heads_first(key)
        towards_scores = towards_scores * self.scale
        of_query, of_key = towards_scores @ asked, towards_scores.mT @ asking
        for first, last, window in self._blocks():
            if self.falling is not None and self.of_falling is not None:
                spread = _unskewed(towards_scores[:, first:last])
                of_query[:, first:last] += spread @ self.falling[:, window]
                self.of_falling[:, window] += spread.mT @ asking[:, first:last]
            if self.rising is not None and self.of_rising is not None:
                spread = _unskewed(towards_scores[:, :, first:last].mT)
                of_key[:, first:last] += spread @ self.rising[:, window]
                self.of_rising[:, window] += spread.mT @ asked[:, first:last]
        return of_query, of_key

    def table_gradients(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Those of relative_key and relative_query: sums over the distances that share a row of the table."""
        by_distance = self.view.rows_by_distance
        return (
            _by_row(self.of_falling, None if by_distance is None else by_distance.flip(0), self.keys.relative_key),
            _by_row(self.of_rising, by_distance, self.keys.relative_query),
        )

    def _blocks(self) -> list[tuple[int, int, slice]]:
        """(first, one after the last, stretch of the table by distance) of each block of queries or keys."""
        bounds = [(first, min(first + BLOCK, self.length)) for first in range(0, self.length, BLOCK)]
        return [(first, last, slice(self.length - last, 2 * self.length - 1 - first)) for first, last in bounds]


def _skewed(products: torch.Tensor, length: int) -> torch.Tensor:
    """[H, T, T + L - 1] products with a stretch of the table → [H, T, L], row t from column T - 1 - t on."""
    heads, block, width = products.shape
    return products.as_strided((heads, block, length), (block * width, width - 1, 1), block - 1)


def _unskewed(block_of_scores: torch.Tensor) -> torch.Tensor:
    """[H, T, L] → [H, T, T + L - 1], row t from column T - 1 - t on, zeros elsewhere: the reverse of `_skewed`."""
    heads, block, length = block_of_scores.shape
    spread = block_of_scores.new_zeros(heads, block, block + length - 1)
    _skewed(spread, length).copy_(block_of_scores)
    return spread


def _heads_first(states: torch.Tensor) -> torch.Tensor:
    """[L, H, D] → [H, L, D], fp32."""
    return states.transpose(0, 1).float()


def _by_distance(table: torch.Tensor | None, rows: torch.Tensor | None) -> torch.Tensor | None:
    """[R, H, D] and rows [2L - 1] → [H, 2L - 1, D], fp32."""
    return None if table is None or rows is None else _heads_first(table[rows])


def _by_row(gradient: torch.Tensor | None, rows: torch.Tensor | None, table: torch.Tensor | None) -> Any:
    """The reverse: gradients [H, 2L - 1, D] added up into [R, H, D], in the dtype of the table."""
    if gradient is None or rows is None or table is None:
        return None
    sums = gradient.new_zeros(table.shape).index_add_(0, rows, gradient.transpose(0, 1))
    return sums.to(table.dtype)


def _kept_in_row(dropout: Dropout, row: int, query: torch.Tensor) -> torch.Tensor:
    """[H, L, L] bool."""
    _, length, num_heads, _ = query.shape
    places = torch.arange(length, device=query.device)[None]
    return kept(dropout, num_heads, places, length, first_row=row)[0]
