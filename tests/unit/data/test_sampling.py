"""The order of samples is computed, complete, and different in each epoch."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_scale.data.sampling import locate


@settings(max_examples=50, deadline=None)
@given(num_rows=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5))
def test_each_epoch_reads_every_row_once(num_rows: int, seed: int, epoch: int) -> None:
    located = [locate(epoch * num_rows + place, num_rows, seed) for place in range(num_rows)]
    assert {e for e, _ in located} == {epoch}
    assert sorted(row for _, row in located) == list(range(num_rows))


def test_orders_differ_by_epoch_and_seed_and_are_not_sorted() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        return [locate(epoch * 500 + place, 500, seed)[1] for place in range(500)]

    first = order(0, 1)
    assert first == order(0, 1)
    for other in (order(1, 1), order(0, 2), list(range(500))):
        agreeing = sum(a == b for a, b in zip(first, other, strict=True))
        assert agreeing < 10
    neighbours = sum(abs(a - b) == 1 for a, b in pairwise(first))
    assert neighbours < 10


@pytest.mark.parametrize("num_rows", [10**9 + 7, 2**40])
def test_any_place_of_a_huge_run_is_reached_at_once(num_rows: int) -> None:
    locate(0, num_rows, 1)
    start = time.process_time()
    rows = {locate(10**12 + place, num_rows, 1)[1] for place in range(1000)}
    assert len(rows) == 1000 and all(0 <= row < num_rows for row in rows)
    assert time.process_time() - start < 5.0, "it must not count its way there"
