"""Hand-made rows of a task with each head, for the tests of fine-tuning."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from deberta_scale.finetune.features import IGNORED
from deberta_scale.finetune.readers import Labels
from deberta_scale.finetune.rows import Context, Row, with_specials
from deberta_scale.finetune.tasks import TASKS, Head, Task

OF_HEAD: dict[Head, Task] = {
    "classification": TASKS["mnli"],
    "regression": TASKS["sts-b"],
    "choice": TASKS["copa"],
    "tokens": dataclasses.replace(TASKS["conll-2003"], labels=Labels(("O", "B-PER", "I-PER"))),
    "span": TASKS["squad-2.0"],
}
LENGTHS = (6, 17, 9, 12, 7)
"""Of the rows in tokens, special ones counted."""


def random_rows(head: Head, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Row]:
    """With a target each; of labelled words every other token begins one, of questions the first two are the question,
    and the offsets say that each token of the context is a letter."""
    random = np.random.default_rng(seed)
    return [_row(head, length, number, random) for number, length in enumerate(lengths)]


def _row(head: Head, length: int, number: int, random: np.random.Generator) -> Row:
    def ids(count: int) -> np.ndarray:
        return random.integers(4, 90, count, dtype=np.int32)

    if head == "choice":
        shorter = with_specials(ids(length - 4))
        return Row((shorter, with_specials(ids(length - 2))), int(random.integers(2)), number)
    if head == "span":
        offsets = np.stack([np.arange(length - 5), np.arange(1, length - 4)], axis=1)
        first, last = (int(place) for place in np.sort(random.integers(4, length - 1, 2)))
        sequence = with_specials(ids(2), ids(length - 5))
        return Row((sequence,), (first, last), number, context=Context(4, offsets))
    sequence = with_specials(ids(length - 2))
    if head == "tokens":
        places = range(1, length - 1, 2)
        target = np.full(length, IGNORED, dtype=np.int64)
        target[list(places)] = random.integers(3, size=len(places))
        return Row((sequence,), target, number, words=tuple((p, number, word) for word, p in enumerate(places)))
    target_value = float(random.normal()) if head == "regression" else int(random.integers(3))
    return Row((sequence,), target_value, number)
