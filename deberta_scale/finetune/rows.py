"""A row: what the model sees of an example, or of part of one, and what it shall answer."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deberta_scale.data.tokenizer import CLS_ID, SEP_ID


class Context(NamedTuple):
    """The part of a question's context that a row shows."""

    first_place: int
    """Of its tokens in the row."""
    offsets: np.ndarray
    """[n, 2]: the characters of the context that each token stands for; equal for a token that is white space."""


@dataclass(frozen=True)
class Row:
    """Token ids with their targets."""

    sequences: tuple[np.ndarray, ...]
    """[CLS] text [SEP] or [CLS] text [SEP] text [SEP], int32 [L]: one, or one for each choice."""
    target: int | float | tuple[int, int] | np.ndarray | None
    """See `Batch.targets`."""
    example: int
    """Place in the list of examples; of labelled words, of the first sentence."""
    words: tuple[tuple[int, int, int], ...] = ()
    """Of labelled words: place of the first piece in the row, place of the sentence in the list, of the word in it."""
    context: Context | None = None
    """Of questions."""


@dataclass(frozen=True)
class Features:
    """The rows of a split, and what a person must be told of how they were made."""

    rows: list[Row]
    notes: tuple[str, ...]
    num_cut: int = 0
    """Texts whose ends no row shows."""


class TooLong:
    """Counts what does not fit, so that it can be told."""

    def __init__(self, what: str, max_length: int) -> None:
        self.what, self.max_length = what, max_length
        self.total = self.num_too_long = self.longest = 0

    def count(self, length: int) -> None:
        """`length` in tokens, special ones counted."""
        self.total += 1
        self.num_too_long += length > self.max_length
        self.longest = max(self.longest, length)

    def notes(self, consequence: str) -> tuple[str, ...]:
        if not self.num_too_long:
            return ()
        return (
            f"{self.num_too_long:,} of {self.total:,} {self.what} are longer than {self.max_length} tokens"
            f" (the longest: {self.longest:,}); {consequence}",
        )


def with_specials(*texts: np.ndarray) -> np.ndarray:
    """[CLS] text [SEP] for one text, [CLS] text [SEP] text [SEP] for two; int32."""
    parts: list[np.ndarray] = [np.array([CLS_ID], dtype=np.int32)]
    for text in texts:
        parts += [text, np.array([SEP_ID], dtype=np.int32)]
    return np.concatenate(parts)
