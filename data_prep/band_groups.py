"""Which of the documents that share a band are alike: every one is compared with every other, compiled.

Shape letters: D documents, P permutations (places of a signature), S stretches.
"""

from collections.abc import Iterator

import numba
import numpy as np

MOST_COMPARED = 2**14
"""Documents that are compared each with each. A band that more of them share is cut into stretches of so many, in input
order, and each stretch is compared together with the first of all; else the work would grow with the square."""
_DOCUMENTS_AT_ONCE = 2**16


def stretches_of(begins: np.ndarray, most: int = MOST_COMPARED) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`begins` [D] bool: whether a document is the first of its group. Gives (documents [n], borders [S + 1]) of blocks
    of whole stretches: those from borders[s] to borders[s + 1] of `documents`, which are numbers of [D], are to be
    compared."""
    numbers = np.arange(len(begins))
    in_group = numbers - np.maximum.accumulate(np.where(begins, numbers, 0))
    again = numbers[(in_group > 0) & (in_group % most == 0)]
    documents = np.insert(numbers, again, again - in_group[again])
    starts = np.flatnonzero(np.insert(begins, again, True))
    borders = np.append(starts, len(documents))
    done = 0
    while done < len(starts):
        end = max(done + 1, int(np.searchsorted(borders, borders[done] + _DOCUMENTS_AT_ONCE, side="right")) - 1)
        yield documents[borders[done] : borders[end]], borders[done : end + 1] - borders[done]
        done = end


@numba.njit(cache=True)
def alike_in(signatures: np.ndarray, borders: np.ndarray, least: int) -> np.ndarray:  # pragma: no cover - compiled
    """[pairs, 2] int64, rows of `signatures` [D, P]: enough pairs that agree in `least` places or more to join all that
    such pairs join within a stretch. Those that are joined already are not compared."""
    cluster = np.arange(len(signatures))
    pairs = np.empty((len(signatures), 2), np.int64)
    num_pairs = 0
    most_different = signatures.shape[1] - least
    for stretch in range(len(borders) - 1):
        begin, end = borders[stretch], borders[stretch + 1]
        for one in range(begin, end):
            for other in range(one + 1, end):
                if cluster[one] != cluster[other] and _is_alike(signatures[one], signatures[other], most_different):
                    pairs[num_pairs] = one, other
                    num_pairs += 1
                    joined = cluster[other]
                    for member in range(begin, end):
                        if cluster[member] == joined:
                            cluster[member] = cluster[one]
    return pairs[:num_pairs].copy()


@numba.njit(cache=True)
def _is_alike(one: np.ndarray, other: np.ndarray, most_different: int) -> bool:  # pragma: no cover - compiled
    different = 0
    for place in range(len(one)):
        different += one[place] != other[place]
        if different > most_different:
            return False
    return True
