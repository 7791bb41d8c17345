"""Rows of tokens → the arrays of a batch: [CLS], [SEP], segments, positions, masks and digests, compiled.

Runs without Python's lock, on plain arrays: the tokens of all shards of all sources are one stream, of which each
shard's part is known by its address in memory. The twin that says the same in plain Python is `twins.PlainLoader`.
Shape letters: B rows of a batch, L places of a row, K shards, N rows and M pieces of all sources.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from deberta_scale.data.hashing import mix
from deberta_scale.data.masking import MaskingTables, Work, mask_row
from deberta_scale.data.tokenizer import CLS_ID, PAD_ID, SEP_ID

assert PAD_ID == 0, "arrays are cleared to it"
EMPTY = -1
"""Number of a row that is all padding."""
SPREAD, PREDICTED = np.uint64(0x9E3779B97F4A7C15), np.uint64(2**63)
"""In digests: keep places apart, and predicted tokens from shown ones."""


class Stream(NamedTuple):
    """The rows and tokens of all sources, numbered through. Whoever makes it keeps the mapped files alive."""

    addresses: np.ndarray
    """[K] uint64: where the int32 tokens of each shard lie."""
    shard_starts: np.ndarray
    """[K + 1] int64: first token of each shard, and the end."""
    first_piece: np.ndarray
    """[N + 1] int64, see packing.Rows."""
    piece_starts: np.ndarray
    """[M] int64"""
    piece_lengths: np.ndarray
    """[M] int32"""
    one_segment: bool


class Output(NamedTuple):
    """Arrays to be filled."""

    shown: np.ndarray
    """[B, L] int64"""
    segments: np.ndarray
    """[B, L] int64"""
    positions: np.ndarray
    """[B, L] int64"""
    predicted_places: np.ndarray
    """[B * L] int64: flat, those of all rows back to back."""
    predicted_ids: np.ndarray
    """[B * L] int64: the true tokens there."""
    predictions: np.ndarray
    """[B] int64: predicted tokens of each row."""
    used: np.ndarray
    """[B] int64: places of each row that are not padding."""
    digests: np.ndarray
    """[B] uint64"""


def new_output(num_rows: int, row_length: int) -> Output:
    """Room for a batch."""
    shown, segments, positions = (np.empty((num_rows, row_length), np.int64) for _ in range(3))
    places, ids = (np.empty(num_rows * row_length, np.int64) for _ in range(2))
    predictions, used = (np.empty(num_rows, np.int64) for _ in range(2))
    return Output(shown, segments, positions, places, ids, predictions, used, np.empty(num_rows, np.uint64))


@intrinsic
def _pointer_to_int32(typing_context: Any, address: Any) -> Any:  # pragma: no cover - run by the compiler
    """An address as a pointer that numba.carray takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.uint64), generate


@numba.njit(cache=True, nogil=True)
def assemble(
    stream: Stream,
    masking: MaskingTables,
    work: Work,
    stream_rows: np.ndarray,
    seeds: np.ndarray,
    epochs: np.ndarray,
    rows: np.ndarray,
    rows_per_batch: int,
    output: Output,
) -> int:  # pragma: no cover - compiled
    """Fill `output` with the rows `stream_rows` [B] of the stream, each masked by its (seed, epoch, row) [B]; returns
    the number of predicted tokens. Flat places begin anew after `rows_per_batch` rows."""
    row_length = output.shown.shape[1]
    total = 0
    for index in range(len(stream_rows)):
        shown, segments, positions = output.shown[index], output.segments[index], output.positions[index]
        used = 0
        if stream_rows[index] != EMPTY:
            used = _fill_row(stream, stream_rows[index], shown, segments, positions)
        shown[used:] = 0
        segments[used:] = 0
        positions[used:] = 0
        count = mask_row(shown[:used], work, masking, seeds[index], epochs[index], rows[index])
        digest = np.uint64(used)
        for place in range(used):
            value = shown[place] ^ (segments[place] << 32) ^ (positions[place] << 48)
            digest += mix(np.uint64(value) ^ (np.uint64(place) * SPREAD))
        for number in range(count):
            place, token = work.places[number], work.true_tokens[number]
            output.predicted_places[total + number] = index % rows_per_batch * row_length + place
            output.predicted_ids[total + number] = token
            digest += mix(np.uint64(token) ^ (np.uint64(place) << np.uint64(32)) ^ PREDICTED)
        output.predictions[index], output.used[index], output.digests[index] = count, used, digest
        total += count
    return total


@numba.njit(cache=True, nogil=True)
def _fill_row(
    stream: Stream, row: int, tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray
) -> int:  # pragma: no cover - compiled
    """Write the pieces of a row between special tokens; returns the number of places used."""
    place, segment, segment_start, numbered = 0, 0, 0, 0
    for piece in range(stream.first_piece[row], stream.first_piece[row + 1]):
        if place == 0 or not stream.one_segment:
            segment, segment_start = segment + 1, place
            tokens[place] = CLS_ID
            place += 1
        start, length = stream.piece_starts[piece], np.int64(stream.piece_lengths[piece])
        while length:  # a piece lies in one shard, as its document does; but nothing here needs to rely on it
            shard = np.searchsorted(stream.shard_starts, start, side="right") - 1
            here = min(length, stream.shard_starts[shard + 1] - start)
            source = numba.carray(
                _pointer_to_int32(stream.addresses[shard]),
                (stream.shard_starts[shard + 1] - stream.shard_starts[shard],),
            )
            offset = start - stream.shard_starts[shard]
            for token in range(here):
                tokens[place + token] = source[offset + token]
            place, start, length = place + here, start + here, length - here
        tokens[place] = SEP_ID
        place += 1
        for filled in range(numbered, place):
            segments[filled] = segment
            positions[filled] = filled - segment_start
        numbered = place
    return place
