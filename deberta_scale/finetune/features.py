"""Examples → rows of token ids with what to predict in them, and rows → the padded arrays of a batch.

Shape letters: B rows, C choices, L places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.finetune.features_spans import span_rows
from deberta_scale.finetune.readers import Example, Labels
from deberta_scale.finetune.rows import Features, Row, TooLong, with_specials
from deberta_scale.finetune.tasks import Task

IGNORED = -100
"""The target of places that are not to be labelled: torch's `ignore_index`."""
DEFAULT_STRIDE_TOKENS = 128


def features_of(
    task: Task, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, stride_tokens: int | None = None
) -> Features:
    """The rows of a split, of at most `max_length` tokens each, special ones counted.

    Texts that are longer are cut, of a pair the longer one first; contexts of questions become several rows instead,
    one every `stride_tokens` (DEFAULT_STRIDE_TOKENS where None), and sentences of labelled words go on in the next row.
    Raises ValueError for a length without room for text, and for a stride that leaves tokens out or has no effect.
    """
    if max_length < 8:
        raise ValueError(f"max_length {max_length}: too short for text between special tokens; give 8 or more")
    if task.head == "span":
        return span_rows(examples, tokenizer, max_length, stride_tokens or DEFAULT_STRIDE_TOKENS)
    if stride_tokens is not None:
        raise ValueError(f"stride_tokens {stride_tokens} has no effect on {task.name}, whose texts are not questions")
    if task.head == "tokens":
        return _word_rows(examples, task.labels, tokenizer, max_length)
    return _text_rows(examples, task.labels, tokenizer, max_length)


def _text_rows(examples: Sequence[Example], labels: Labels, tokenizer: Tokenizer, max_length: int) -> Features:
    inputs = [example.choices or (example.texts,) for example in examples]
    unique = list(dict.fromkeys(text for row in inputs for texts in row for text in texts))
    ids_of = dict(zip(unique, tokenizer.encode(unique), strict=True))
    too_long = TooLong("texts", max_length)
    rows = [
        Row(tuple(_sequence([ids_of[text] for text in texts], max_length, too_long) for texts in row), target, number)
        for number, (row, target) in enumerate(zip(inputs, (_target(e, labels) for e in examples), strict=True))
    ]
    return Features(rows, too_long.notes("their ends were left out"), num_cut=too_long.num_too_long)


def _target(example: Example, labels: Labels) -> int | float | None:
    if isinstance(example.label, str):
        return labels.names.index(example.label)
    assert example.label is None or isinstance(example.label, float)
    return example.label


def _sequence(texts: list[np.ndarray], max_length: int, too_long: TooLong) -> np.ndarray:
    room = max_length - len(texts) - 1
    too_long.count(sum(map(len, texts)) + len(texts) + 1)
    if len(texts) == 2:
        return with_specials(*_cut_longer_first(texts[0], texts[1], room))
    return with_specials(texts[0][:room])


def _cut_longer_first(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """What is left when the end of the longer text is dropped token by token until both fit."""
    second = second[: max(room // 2, room - len(first))]
    return first[: room - len(second)], second


def _word_rows(examples: Sequence[Example], labels: Labels, tokenizer: Tokenizer, max_length: int) -> Features:
    """Sentences of a document share rows, as in the official code; the first piece of each word is labelled."""
    room = max_length - 2
    too_long = TooLong("sentences", max_length)
    rows: list[Row] = []
    pieces: list[np.ndarray] = []
    words: list[tuple[int, int, int]] = []

    def end_row() -> None:
        if pieces:
            rows.append(_word_row(pieces, words, examples, labels))
            pieces.clear()
            words.clear()

    for number, example in enumerate(examples):
        found = [_pieces_of_word(ids, room) for ids in tokenizer.encode([f" {word}" for word in example.texts])]
        length = sum(map(len, found))
        too_long.count(length + 2)
        joins = number > 0 and example.group is not None and example.group == examples[number - 1].group
        if not joins or sum(map(len, pieces)) + length > room:
            end_row()
        for word, ids in enumerate(found):
            if sum(map(len, pieces)) + len(ids) > room:
                end_row()
            words.append((1 + sum(map(len, pieces)), number, word))
            pieces.append(ids)
    end_row()
    return Features(rows, too_long.notes("they go on in the next row"))


def _pieces_of_word(ids: np.ndarray, room: int) -> np.ndarray:
    """A word that has no pieces, or more than a row, has a place all the same."""
    return ids[:room] if len(ids) else np.array([Tokenizer.unk_id], dtype=np.int32)


def _word_row(
    pieces: list[np.ndarray], words: list[tuple[int, int, int]], examples: Sequence[Example], labels: Labels
) -> Row:
    sequence = with_specials(np.concatenate(pieces))
    target = np.full(len(sequence), IGNORED, dtype=np.int64)
    for place, number, word in words:
        names = examples[number].label
        assert isinstance(names, tuple)
        target[place] = labels.names.index(str(names[word]))
    return Row((sequence,), target, words[0][1], words=tuple(words))


@dataclass(frozen=True)
class Batch:
    """Rows side by side."""

    token_ids: np.ndarray
    """[B, L] int64, [B, C, L] where there are choices; padding is 0."""
    segment_ids: np.ndarray
    """The same shape: 1, and 0 for padding."""
    targets: np.ndarray | None
    """[B] int64, number of the label or choice; [B] float32 (regression); [B, L] int64, IGNORED but at first pieces of
    words; [B, 2] int64, places of the first and the last token of the answer, 0 (that of [CLS]) where there is none.
    None where the split has no labels."""


def batch_of(rows: Sequence[Row]) -> Batch:
    """Pad to the longest of these rows."""
    length = max(len(sequence) for row in rows for sequence in row.sequences)
    shape = (len(rows), len(rows[0].sequences), length)
    token_ids, segment_ids = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(rows):
        for choice, sequence in enumerate(row.sequences):
            token_ids[number, choice, : len(sequence)] = sequence
            segment_ids[number, choice, : len(sequence)] = 1
    if shape[1] == 1:
        token_ids, segment_ids = token_ids[:, 0], segment_ids[:, 0]
    return Batch(token_ids, segment_ids, _targets(rows, length))


def _targets(rows: Sequence[Row], length: int) -> np.ndarray | None:
    targets = [row.target for row in rows]
    if any(target is None for target in targets):
        return None
    if isinstance(targets[0], np.ndarray):
        padded = np.full((len(rows), length), IGNORED, dtype=np.int64)
        for line, row in zip(padded, rows, strict=True):
            assert isinstance(row.target, np.ndarray)
            line[: len(row.target)] = row.target
        return padded
    return np.array(targets, dtype=np.float32 if isinstance(targets[0], float) else np.int64)
