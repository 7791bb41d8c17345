"""Random numbers of dropout in kernels: a counter, mixed. The same on every device and in every kernel.

A row of probabilities has a 64-bit key: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) of the seed and of
(row, head, query place). The number of a key place in it is that place, mixed with both halves of the key by the
finaliser of MurmurHash3 (Appleby, 2011). A probability is dropped when its number lies below probability * 2**32.
Hidden states are dropped alike: the row of one is its place in the batch.
"""

import torch

from deberta_scale.kernels.signature import Dropout

_MASK32 = 0xFFFFFFFF
_GOLDEN64, _FIRST64, _SECOND64 = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_GOLDEN32 = 0x9E3779B9
_FIRST32, _SECOND32 = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32


def drawn(probability: float) -> Dropout | None:
    """With a seed of torch's generator for CPUs, which recomputing a layer finds as it was; None when nothing is
    dropped."""
    return Dropout(probability, int(torch.randint(2**63 - 1, (), device="cpu"))) if probability else None


def drop_threshold(probability: float) -> int:
    """Numbers below it, of 2**32, are dropped."""
    return min(int(probability * 2**32), _MASK32)


def kept(dropout: Dropout, num_heads: int, query_places: torch.Tensor, length: int, first_row: int = 0) -> torch.Tensor:
    """[B, H, Q, L] bool: which probabilities stay, for query places [B, Q] that meet `length` keys, in rows of the
    batch from `first_row` on."""
    num_rows, device = query_places.size(0), query_places.device
    heads = torch.arange(num_rows * num_heads, device=device).view(num_rows, num_heads, 1) + first_row * num_heads
    keys = _row_keys(dropout.seed, heads * length + query_places[:, None])
    low, high = (_as_int32(half)[..., None] for half in (keys & _MASK32, _shift_right(keys, 32, 64)))
    places = torch.arange(length, device=device, dtype=torch.int64)
    number = low + _as_int32(places * _GOLDEN32 & _MASK32)
    number ^= _shift_right(number, 16, 32)
    number *= _FIRST32
    number ^= high
    number ^= _shift_right(number, 13, 32)
    number *= _SECOND32
    number ^= _shift_right(number, 16, 32)
    # an unsigned comparison of signed numbers: the sign bit of both is turned
    return (number ^ -(2**31)) >= drop_threshold(dropout.probability) - 2**31


def _row_keys(seed: int, rows: torch.Tensor) -> torch.Tensor:
    """int64 keys of rows of probabilities, numbered over batch, heads and places."""
    value = (rows + 1) * _GOLDEN64 + seed
    value = (value ^ _shift_right(value, 30, 64)) * _FIRST64
    value = (value ^ _shift_right(value, 27, 64)) * _SECOND64
    return value ^ _shift_right(value, 31, 64)


def _shift_right(value: torch.Tensor, by: int, bits: int) -> torch.Tensor:
    """Zeros come in from the left, as in unsigned numbers."""
    return (value >> by) & ((1 << (bits - by)) - 1)


def _as_int32(value: torch.Tensor) -> torch.Tensor:
    """int64 numbers in [0, 2**32) as the int32 of the same bits."""
    return torch.where(value >= 2**31, value - 2**32, value).to(torch.int32)
