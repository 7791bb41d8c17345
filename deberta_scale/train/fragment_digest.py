"""A digest of a tensor that is the sum of the digests of its parts, however it was cut."""

import numba
import numpy as np
import torch

from deberta_scale.data.hashing import mix


def digest_of_values(values: torch.Tensor, start: int) -> int:
    """64-bit digest of flat fp32 values on the host, the first of which has position `start` < 2**32 in its tensor.

    Every bit of every value counts, and its place. Sums modulo 2**64 over the parts of a tensor are the whole's.
    """
    return int(_sum_of_words(values.numpy().view(np.uint32), start))


@numba.njit(cache=True, nogil=True)
def _sum_of_words(bits: np.ndarray, start: int) -> np.uint64:  # pragma: no cover - compiled
    total = np.uint64(0)
    for index in range(len(bits)):
        total += mix((np.uint64(start + index) << np.uint64(32)) | np.uint64(bits[index]))
    return total
