"""The order of samples is computed, complete, and different in each epoch."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_scale.data.sampling import rows_of


def located(first_sample: int, count: int, num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, rows) of samples that follow each other, of a run over one source."""
    numbers = np.arange(first_sample, first_sample + count)
    return rows_of(np.zeros_like(numbers), numbers, np.array([num_rows]), np.array([seed]))


@settings(max_examples=50, deadline=None)
@given(num_rows=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5))
def test_each_epoch_reads_every_row_once(num_rows: int, seed: int, epoch: int) -> None:
    """R1."""
    epochs, rows = located(epoch * num_rows, num_rows, num_rows, seed)
    assert (epochs == epoch).all()
    assert sorted(rows) == list(range(num_rows))


def test_orders_differ_by_epoch_and_seed_and_are_not_sorted() -> None:
    def order(epoch: int, seed: int) -> np.ndarray:
        return located(epoch * 500, 500, 500, seed)[1]

    first = order(0, 1)
    assert (first == order(0, 1)).all()
    for other in (order(1, 1), order(0, 2), np.arange(500)):
        assert np.count_nonzero(first == other) < 10
    assert np.count_nonzero(np.abs(np.diff(first)) == 1) < 10, "neighbours are not read after each other"


def test_sources_have_rows_and_orders_of_their_own() -> None:
    sources, numbers = np.array([1, 0, 1, 0] * 50), np.arange(200)
    epochs, rows = rows_of(sources, numbers, np.array([7, 90]), np.array([5, 6]))
    for source, num_rows, seed in ((0, 7, 5), (1, 90, 6)):
        alone = located(0, 200, num_rows, seed)
        assert (epochs[sources == source] == alone[0][sources == source]).all()
        assert (rows[sources == source] == alone[1][sources == source]).all()


@pytest.mark.parametrize("num_rows", [10**9 + 7, 2**40])
def test_any_place_of_a_huge_run_is_reached_at_once(num_rows: int) -> None:
    """R5."""
    located(0, 1, num_rows, 1)
    start = time.process_time()
    _, rows = located(10**12, 1000, num_rows, 1)
    assert len(set(rows.tolist())) == 1000 and ((rows >= 0) & (rows < num_rows)).all()
    assert time.process_time() - start < 5.0, "it must not count its way there"
