"""Rows hold every token once, never more than fits, and little padding."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_scale.data.packing import LEAST_CUT_TOKENS, Rows, pack

MODES = ("best_fit", "concat", "doc")


@dataclass
class Lengths:
    """What packing looks at: paragraphs of documents, in tokens."""

    documents: list[list[int]]

    @property
    def sequence_lengths(self) -> np.ndarray:
        return np.array([length for document in self.documents for length in document], dtype=np.int32)

    @property
    def document_index(self) -> np.ndarray:
        return np.cumsum([0] + [len(document) for document in self.documents])

    @property
    def document_of_token(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.documents)), [sum(document) for document in self.documents])


def rows_of(lengths: Lengths, row_length: int, mode: str) -> Rows:
    return pack(lengths, row_length, mode)  # type: ignore[arg-type]


documents = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=6), min_size=1, max_size=20)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None)
@given(documents=documents, row_length=st.integers(8, 40))
def test_every_token_stands_in_one_row_and_rows_do_not_overflow(
    mode: str, documents: list[list[int]], row_length: int
) -> None:
    lengths = Lengths(documents)
    rows = rows_of(lengths, row_length, mode)
    seen = np.zeros(sum(map(sum, documents)), dtype=int)
    for row in range(len(rows)):
        pieces = rows.pieces(row)
        places = 0 if mode != "concat" else 1
        for start, length in pieces:
            assert length > 0
            seen[start : start + length] += 1
            places += length + (1 if mode == "concat" else 2)
            assert len(set(lengths.document_of_token[start : start + length])) == 1, "a piece is of one document"
        assert pieces and places <= row_length
    assert (seen == 1).all()
    used = 1.0 - rows.padding_share(row_length)
    special = len(rows) + len(rows.lengths) if mode == "concat" else 2 * len(rows.lengths)
    assert used == pytest.approx((len(seen) + special) / (len(rows) * row_length))


def test_long_documents_fill_whole_rows_and_leave_a_rest() -> None:
    rows = rows_of(Lengths([[10, 10, 10], [50], [3, 21], [4]]), 26, "doc")
    pieces = [rows.pieces(row)[0] for row in range(len(rows))]
    assert pieces == [(0, 24), (24, 6), (30, 24), (54, 24), (78, 2), (80, 24), (104, 4)]


def test_concat_goes_through_documents_and_separates_them() -> None:
    rows = rows_of(Lengths([[4], [9], [3]]), 8, "concat")
    # 7 places after [CLS]: 4 + [SEP], then room for one token and its [SEP]
    assert [rows.pieces(row) for row in range(len(rows))] == [[(0, 4), (4, 1)], [(5, 6)], [(11, 2), (13, 3)]]
    assert rows.one_segment


def test_few_long_documents_fill_rows_of_512_to_half_a_percent() -> None:
    """Their rests fit each other badly: the emptiest rows are cut to the room in others."""
    random = np.random.default_rng(0)
    rows = rows_of(Lengths([[int(length)] for length in random.integers(2000, 4000, 300)]), 512, "best_fit")
    assert rows.padding_share(512) < 0.005
    assert np.count_nonzero(rows.lengths < LEAST_CUT_TOKENS) < 20, "only what documents leave may be so short"


def test_best_fit_wastes_little() -> None:
    random = np.random.default_rng(0)
    documents = [[int(n) for n in random.integers(5, 120, random.integers(1, 20))] for _ in range(2000)]
    best, one = (rows_of(Lengths(documents), 512, mode).padding_share(512) for mode in ("best_fit", "doc"))
    assert best < 0.01 and one > 0.2
