"""This rank's batches of labelled rows. As in pretraining, the whole state is the number of the next sample.

Shape letters: B rows, C choices, L places.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from deberta_scale.batch import ModelBatch
from deberta_scale.data.hashing import key_of
from deberta_scale.data.loader import DIGEST_MODULUS, StepData
from deberta_scale.data.sampling import rows_of
from deberta_scale.finetune.features import IGNORED, batch_of
from deberta_scale.finetune.rows import Row


@dataclass(frozen=True)
class TaskBatch(ModelBatch):
    """Rows of a task, `token_ids` [B, L], or [B, C, L] where there are choices, and what to predict of them."""

    segment_ids: torch.Tensor
    """The same shape, int64: 1, and 0 for padding. A choice that is all padding does not exist."""
    targets: torch.Tensor | None
    """See `features.Batch.targets`. None where a row of the split has no label, and where there is no row."""

    @staticmethod
    def of(rows: Sequence[Row]) -> "TaskBatch":
        """Padded to the longest of these rows."""
        batch = batch_of(rows)
        targets = None if batch.targets is None else torch.from_numpy(batch.targets)
        return TaskBatch(torch.from_numpy(batch.token_ids), torch.from_numpy(batch.segment_ids), targets)


class FineTuningLoader:
    """Orders the rows of a split and puts them into batches. Sample g is the same on every rank of every run."""

    def __init__(self, rows: Sequence[Row], seed: int, micro_sequences: int, rank: int, world_size: int) -> None:
        """Raises ValueError when there are no rows. Where one has no target, none has: a loss would be that of some."""
        if not rows:
            raise ValueError("the split has no rows to read; give files with examples")
        self.is_labelled = all(row.target is not None for row in rows)
        """Whether all rows have a target: what is trained on must."""
        self.rows = list(rows) if self.is_labelled else [replace(row, target=None) for row in rows]
        self._seed, self._micro_sequences, self._rank, self._world_size = seed, micro_sequences, rank, world_size

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self.rows)

    @cached_property
    def _digests(self) -> list[bytes]:
        return [_content_digest(row) for row in self.rows]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal: of the ids and targets of all rows, in their order."""
        return hashlib.sha256(b"".join(self._digests)).hexdigest()

    def steps(self, first_sample: int, sequences: int) -> Generator[StepData, None, None]:
        """Step after step from sample `first_sample` on, without end."""
        while True:
            yield self.step(first_sample, sequences)
            first_sample += sequences

    def step(self, first_sample: int, sequences: int) -> StepData:
        """This rank's part of the samples first_sample .. first_sample + sequences - 1 of the run, which is made of
        epochs; each has its own order and reads every row once. Which samples make a step does not depend on ranks and
        micro-batches; among these they are dealt out by length."""
        assert self.is_labelled, "readers refuse a training split without labels"
        per_pass = self._micro_sequences * self._world_size
        assert sequences % per_pass == 0, "BatchConfig.accumulation_steps has checked it"
        numbers = self._rows_of(np.arange(first_sample, first_sample + sequences))
        lengths = np.array([max(map(len, self.rows[number].sequences)) for number in numbers])
        by_length = np.argsort(lengths, kind="stable")  # of equal length side by side: what is padded is little
        micro_batches: list[Any] = []
        digest = predicted = useful = 0
        for first in range(self._rank * self._micro_sequences, sequences, per_pass):
            chosen = by_length[first : first + self._micro_sequences].tolist()
            rows = [self.rows[numbers[place]] for place in chosen]
            micro_batches.append(TaskBatch.of(rows))
            digest += sum(self._sample_digest(numbers[place], first_sample + place) for place in chosen)
            predicted += sum(_num_targets(row) for row in rows)
            useful += sum(len(sequence) for row in rows for sequence in row.sequences)
        return StepData(micro_batches, predicted, useful, digest % DIGEST_MODULUS)

    def _rows_of(self, samples: np.ndarray) -> list[int]:
        """Of samples [n] of the run."""
        num_rows, seeds = np.array([len(self.rows)]), np.array([self._seed])
        _, numbers = rows_of(np.zeros_like(samples), samples, num_rows, seeds)
        return numbers.tolist()

    def _sample_digest(self, row: int, sample: int) -> int:
        content = int.from_bytes(self._digests[row], "little") % DIGEST_MODULUS
        return int(key_of(content, row, sample)) % DIGEST_MODULUS

    def evaluation_batches(self) -> Iterator[tuple[range, TaskBatch]]:
        """This rank's part of the rows, each once and in their order: (numbers of the rows, these rows).

        All ranks get the same number of batches, since ZeRO-3 needs them to go through the model together; at the end
        there may be one without a row, which shows the model a row of padding that has no target.
        """
        per_pass = self._micro_sequences * self._world_size
        for first in range(self._rank * self._micro_sequences, _rounded_up(len(self.rows), per_pass), per_pass):
            numbers = range(first, min(first + self._micro_sequences, len(self.rows)))
            yield numbers, TaskBatch.of([self.rows[number] for number in numbers]) if numbers else self._padding()

    def _padding(self) -> TaskBatch:
        num_choices = len(self.rows[0].sequences)
        nothing = torch.zeros((1, num_choices, 1) if num_choices > 1 else (1, 1), dtype=torch.int64)
        return TaskBatch(nothing, nothing, None)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _num_targets(row: Row) -> int:
    return int(np.count_nonzero(row.target != IGNORED)) if isinstance(row.target, np.ndarray) else 1


def _content_digest(row: Row) -> bytes:
    """Of its ids and its target."""
    content = hashlib.blake2b(digest_size=16)
    for sequence in row.sequences:
        content.update(len(sequence).to_bytes(8, "little"))
        content.update(sequence.astype("<i4").tobytes())
    if row.target is not None:
        content.update(np.asarray(row.target, dtype="<f8" if isinstance(row.target, float) else "<i8").tobytes())
    return content.digest()
