"""The order of rows is that of the seed, whoever reads them, and evaluation reads each once."""

import dataclasses
from itertools import islice

import numpy as np
import pytest

from deberta_scale.data.loader import DIGEST_MODULUS, StepData
from deberta_scale.finetune.features import IGNORED
from deberta_scale.finetune.loader import FineTuningLoader
from deberta_scale.finetune.rows import Row
from tests.task_rows import random_rows

SEQUENCES = 24
ROWS = [Row((np.array([1, 4 + number, 2], dtype=np.int32),), number % 3, number) for number in range(31)]
"""Known by their second token."""


def loader(
    rows: list[Row] = ROWS, seed: int = 5, micro: int = 1, rank: int = 0, world_size: int = 1
) -> FineTuningLoader:
    return FineTuningLoader(rows, seed, micro, rank, world_size)


def rows_in(step: StepData) -> list[list[int]]:
    """The numbers of the rows, by micro-batch."""
    return [[int(ids[1]) - 4 for ids in batch.token_ids] for batch in step.micro_batches]


def order(count: int, seed: int = 5, first: int = 0) -> list[int]:
    """Of the samples, as one rank reads them one by one."""
    steps = loader(seed=seed).steps(first, 1)
    return [rows_in(step)[0][0] for step in islice(steps, count)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_order_and_digest_depend_neither_on_ranks_nor_on_the_size_of_micro_batches(micro: int, world_size: int) -> None:
    of_all = order(5 * SEQUENCES)
    ranks = [loader(micro=micro, rank=rank, world_size=world_size).steps(0, SEQUENCES) for rank in range(world_size)]
    alone = loader(micro=SEQUENCES).steps(0, SEQUENCES)
    for number in range(5):
        steps = [next(rank) for rank in ranks]
        micro_batches = [part for together in zip(*map(rows_in, steps), strict=True) for part in together]
        assert {len(part) for part in micro_batches} == {micro}
        assert [row for part in micro_batches for row in part] == of_all[number * SEQUENCES :][:SEQUENCES]
        assert sum(step.digest for step in steps) % DIGEST_MODULUS == next(alone).digest


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_of_like_length_are_padded_together(world_size: int) -> None:
    lengths = np.random.default_rng(3).permutation(np.arange(4, 28))
    rows = [Row((np.full(length, 4 + number, dtype=np.int32),), 0, number) for number, length in enumerate(lengths)]
    ranks = [loader(rows, micro=4, rank=rank, world_size=world_size).steps(0, 24) for rank in range(world_size)]
    passes = zip(*(next(rank).micro_batches for rank in ranks), strict=True)
    shown = [batch.segment_ids.sum(-1).tolist() for together in passes for batch in together]
    assert shown == [list(range(first, first + 4)) for first in range(4, 28, 4)], "by length, over ranks and passes"


def test_each_epoch_reads_every_row_once_in_an_order_of_its_own() -> None:
    first, second = order(31), order(31, first=31)
    assert sorted(first) == sorted(second) == list(range(31))
    orders = [first, second, order(31, seed=6), list(range(31))]
    for n, one in enumerate(orders):
        for other in orders[n + 1 :]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 8


def test_a_run_goes_on_at_any_sample() -> None:
    whole = list(islice(loader(micro=4).steps(0, SEQUENCES), 5))
    later = next(loader(micro=4).steps(4 * SEQUENCES, SEQUENCES))
    assert rows_in(later) == rows_in(whole[4]) and later.digest == whole[4].digest


def test_an_epoch_may_be_smaller_than_a_step() -> None:
    (step,) = islice(loader(ROWS[:5], micro=4).steps(0, SEQUENCES), 1)
    seen = [row for part in rows_in(step) for row in part]
    assert sorted(seen[:5]) == sorted(seen[5:10]) == list(range(5))


def test_micro_batches_are_padded_to_their_longest_row_with_its_targets() -> None:
    rows = random_rows("tokens")
    (step,) = islice(loader(rows, micro=2).steps(0, 10), 1)
    by_ids = {tuple(row.sequences[0].tolist()): row for row in rows}
    useful = predicted = 0
    for batch in step.micro_batches:
        lengths = batch.segment_ids.sum(-1).tolist()
        assert batch.token_ids.shape[1] == max(lengths)
        for ids, targets, length in zip(batch.token_ids, batch.targets, lengths, strict=True):
            row = by_ids[tuple(ids[:length].tolist())]
            assert targets[:length].tolist() == list(row.target)
            assert not ids[length:].any() and (targets[length:] == IGNORED).all()
        useful += sum(lengths)
        predicted += int((batch.targets != IGNORED).sum())
    assert (step.useful_tokens, step.predicted_tokens) == (useful, predicted)


@pytest.mark.parametrize("head", ["classification", "regression", "choice", "span"])
def test_a_row_has_one_target_where_it_is_not_labelled_words(head: str) -> None:
    rows = random_rows(head)  # type: ignore[arg-type]
    (step,) = islice(loader(rows, micro=5).steps(0, 5), 1)
    assert step.predicted_tokens == 5
    assert step.useful_tokens == sum(len(sequence) for row in rows for sequence in row.sequences)


def changed(row: Row, **values: object) -> list[Row]:
    return [dataclasses.replace(row, **values), *ROWS[1:]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        changed(ROWS[0], target=1),
        changed(ROWS[0], target=0.5),
        changed(ROWS[0], sequences=(np.array([1, 5, 2], dtype=np.int32),)),
        changed(ROWS[0], sequences=(np.array([1, 4], dtype=np.int32), np.array([2], dtype=np.int32))),
        [ROWS[1], ROWS[0], *ROWS[2:]],
    ],
)
def test_fingerprint_and_digests_tell_other_rows(other: list[Row]) -> None:
    assert loader(other).fingerprint != loader().fingerprint
    one, two = (loader(rows).step(0, 31).digest for rows in (ROWS, other))
    assert one != two


def test_the_fingerprint_is_that_of_the_rows_alone() -> None:
    assert loader(seed=9, micro=4, rank=1, world_size=2).fingerprint == loader().fingerprint


def test_a_digest_tells_which_samples_were_read() -> None:
    """Also in another epoch, which has the same rows."""
    assert loader().step(0, 31).digest != loader().step(31, 31).digest


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 31])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 4])
def test_evaluation_reads_every_row_once_in_order_in_as_many_batches_on_every_rank(
    micro: int, world_size: int, num_rows: int
) -> None:
    ranks = [
        list(loader(ROWS[:num_rows], 5, micro, rank, world_size).evaluation_batches()) for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    read = []
    for together in zip(*ranks, strict=True):
        for numbers, batch in together:
            read += list(numbers)
            if numbers:
                assert [int(ids[1]) - 4 for ids in batch.token_ids] == list(numbers)
                assert batch.targets is not None and batch.targets.tolist() == [n % 3 for n in numbers]
            else:
                assert batch.targets is None and not batch.segment_ids.any() and len(batch.token_ids) == 1
    assert read == list(range(num_rows))


def test_where_a_row_has_no_target_none_has() -> None:
    partly = loader(changed(ROWS[0], target=None), micro=4)
    assert not partly.is_labelled
    assert all(batch.targets is None for _, batch in partly.evaluation_batches())


def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows to read"):
        loader([])
