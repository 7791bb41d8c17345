"""Documents → rows of at most L places, decided once from lengths alone; no token is read here.

A row is a list of pieces, each a stretch of one split's token stream and of one document. A document longer than a row
fills whole rows, and its rest shares one: cutting at the ends of paragraphs instead was measured to leave 12 % of all
places of 512 empty on novels.
Shape letters: N rows, M pieces.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np

from deberta_scale.data.shards import ShardSet

SPECIAL_TOKENS_PER_PIECE = 2
"""[CLS] before and [SEP] after."""
LEAST_CUT_TOKENS = 16
"""To fill a row no piece is cut shorter than this: a few words without what stood before them teach little."""


@dataclass(frozen=True)
class Rows:
    """Which pieces stand in which row."""

    first_piece: np.ndarray
    """[N + 1] int64: row r holds the pieces first_piece[r] .. first_piece[r + 1] - 1."""
    starts: np.ndarray
    """[M] int64: first token of each piece, counted over the whole split."""
    lengths: np.ndarray
    """[M] int32: its tokens, special ones not counted."""
    one_segment: bool
    """True when attention runs over the whole row: one [CLS] before all pieces, a [SEP] after each."""

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """(first token, tokens) of each piece of a row."""
        chosen = slice(int(self.first_piece[row]), int(self.first_piece[row + 1]))
        return list(zip(self.starts[chosen].tolist(), self.lengths[chosen].tolist(), strict=True))

    def padding_share(self, row_length: int) -> float:
        """Share of all places that hold padding."""
        special = len(self) + len(self.lengths) if self.one_segment else SPECIAL_TOKENS_PER_PIECE * len(self.lengths)
        return 1.0 - (int(self.lengths.sum(dtype=np.int64)) + special) / (len(self) * row_length)


def pack(shards: ShardSet, row_length: int, mode: str) -> Rows:
    """Decide the rows of a split. `mode` is `best_fit`, `concat` or `doc`, see DataConfig.packing."""
    return _MODES[mode](shards, row_length)


def _one_piece_a_row(shards: ShardSet, row_length: int) -> Rows:
    starts, lengths = _cut(shards, row_length - SPECIAL_TOKENS_PER_PIECE)
    return Rows(np.arange(len(lengths) + 1), starts, lengths, one_segment=False)


def _best_fit(shards: ShardSet, row_length: int) -> Rows:
    """Longest piece first, each into the fullest row that still has room; then the emptiest rows into the others."""
    starts, lengths = _cut(shards, row_length - SPECIAL_TOKENS_PER_PIECE)
    longest_first = np.argsort(-lengths, kind="stable")
    row_of_piece, num_rows = _fill_rows(lengths[longest_first] + SPECIAL_TOKENS_PER_PIECE, row_length)
    by_row = longest_first[np.argsort(row_of_piece, kind="stable")]
    first_piece = np.concatenate([[0], np.cumsum(np.bincount(row_of_piece, minlength=num_rows))])
    first_piece, starts, lengths = _share_out_emptiest(first_piece, starts[by_row], lengths[by_row], row_length)
    return Rows(first_piece, starts, lengths, one_segment=False)


def _concatenated(shards: ShardSet, row_length: int) -> Rows:
    """Rows cut from the stream of all documents, each document followed by [SEP], whatever the borders."""
    first_piece, starts, lengths = _chop(_document_ends(shards), row_length)
    return Rows(first_piece, starts, lengths, one_segment=True)


_MODES: dict[str, Callable[[ShardSet, int], Rows]] = {
    "best_fit": _best_fit,
    "concat": _concatenated,
    "doc": _one_piece_a_row,
}


def _cut(shards: ShardSet, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut each document into pieces of `capacity` tokens and a rest: (first token, tokens) of each piece."""
    ends = _document_ends(shards)
    document_starts = np.concatenate([[0], ends[:-1]])
    pieces = -(-(ends - document_starts) // capacity)  # of each document, rounded up
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of a piece in its document
    starts = np.repeat(document_starts, pieces) + number * capacity
    return starts, np.minimum(capacity, np.repeat(ends, pieces) - starts).astype(np.int32)


def _document_ends(shards: ShardSet) -> np.ndarray:
    return np.cumsum(shards.sequence_lengths, dtype=np.int64)[shards.document_index[1:] - 1]


@numba.njit(cache=True)
def _fill_rows(sizes: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:  # pragma: no cover - compiled
    """Best fit for sizes that never grow: (row of each piece, number of rows)."""
    row_of_piece = np.empty(len(sizes), np.int64)
    next_open = np.empty(len(sizes), np.int64)  # links the rows that have the same room
    first_open = np.full(row_length + 1, -1, np.int64)  # by room
    num_rows = 0
    for piece in range(len(sizes)):
        size = sizes[piece]
        room = size
        while room <= row_length and first_open[room] < 0:
            room += 1
        if room > row_length:
            row, room, num_rows = num_rows, row_length, num_rows + 1
        else:
            row = first_open[room]
            first_open[room] = next_open[row]
        row_of_piece[piece] = row
        next_open[row] = first_open[room - size]
        first_open[room - size] = row
    return row_of_piece, num_rows


@numba.njit(cache=True)
def _share_out_emptiest(
    first_piece: np.ndarray, starts: np.ndarray, lengths: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """Take the emptiest rows apart, one after the other, and cut their pieces to the room of the next emptiest.

    Matters for few and long documents, whose rests fit each other badly. Returns the arrays of the new Rows.
    """
    num_rows = len(first_piece) - 1
    room = np.empty(num_rows, np.int64)
    for row in range(num_rows):
        tokens = lengths[first_piece[row] : first_piece[row + 1]].sum()
        pieces = first_piece[row + 1] - first_piece[row]
        room[row] = row_length - tokens - (pieces + 1) * SPECIAL_TOKENS_PER_PIECE
    emptiest = np.flatnonzero(room >= LEAST_CUT_TOKENS)
    emptiest = emptiest[np.argsort(-room[emptiest], kind="mergesort")]
    part_starts, part_lengths = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int32)  # a row takes one part
    is_left = np.ones(num_rows, np.bool_)
    giver, taker, fits = 0, 1, len(emptiest) > 1
    while fits:
        first_taker, row = taker, emptiest[giver]
        for piece in range(first_piece[row], first_piece[row + 1]):
            start, tokens = starts[piece], np.int64(lengths[piece])
            while tokens and taker < len(emptiest):
                length = min(tokens, room[emptiest[taker]])
                if 0 < tokens - length < LEAST_CUT_TOKENS:
                    length = tokens - LEAST_CUT_TOKENS
                if length == tokens or length >= LEAST_CUT_TOKENS:
                    part_starts[emptiest[taker]], part_lengths[emptiest[taker]] = start, length
                    start, tokens = start + length, tokens - length
                taker += 1
            fits = fits and tokens == 0
        if fits:
            is_left[row] = False
            giver, taker = taker, taker + 1
            fits = taker < len(emptiest)
        else:
            part_lengths[emptiest[first_taker:]] = 0
    upper_bound = len(starts) + num_rows
    new_first, new_starts = np.zeros(is_left.sum() + 1, np.int64), np.empty(upper_bound, np.int64)
    new_lengths = np.empty(upper_bound, np.int32)
    filled = 0
    for row, old in enumerate(np.flatnonzero(is_left)):
        for piece in range(first_piece[old], first_piece[old + 1]):
            new_starts[filled], new_lengths[filled] = starts[piece], lengths[piece]
            filled += 1
        if part_lengths[old]:
            new_starts[filled], new_lengths[filled] = part_starts[old], part_lengths[old]
            filled += 1
        new_first[row + 1] = filled
    return new_first, new_starts[:filled].copy(), new_lengths[:filled].copy()


@numba.njit(cache=True)
def _chop(
    document_ends: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """Rows of [CLS] and pieces, each piece followed by [SEP]: (first piece of each row, first token, tokens)."""
    upper_bound = len(document_ends) + 1 + (document_ends[-1] + len(document_ends)) // (row_length - 2) + 1
    first_piece = np.empty(upper_bound + 1, np.int64)
    starts, lengths = np.empty(upper_bound, np.int64), np.empty(upper_bound, np.int32)
    num_rows, num_pieces, room, position = 0, 0, 0, 0
    for document in range(len(document_ends)):
        while position < document_ends[document]:
            if room < 2:  # for a token and its [SEP]
                first_piece[num_rows] = num_pieces
                num_rows, room = num_rows + 1, row_length - 1
            length = min(room - 1, document_ends[document] - position)
            starts[num_pieces], lengths[num_pieces] = position, length
            num_pieces, position, room = num_pieces + 1, position + length, room - length - 1
    first_piece[num_rows] = num_pieces
    return first_piece[: num_rows + 1].copy(), starts[:num_pieces].copy(), lengths[:num_pieces].copy()
