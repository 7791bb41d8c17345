"""A model's numbers → predictions, and predictions → the files that GLUE, SuperGLUE and SQuAD take in."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from deberta_scale.durable import write_durably
from deberta_scale.finetune.readers import Example, Labels
from deberta_scale.finetune.rows import Row
from deberta_scale.finetune.tasks import Task


@dataclass(frozen=True)
class Prediction:
    """What a model says of one example."""

    value: str | float | tuple[str, ...]
    """As the label of an example; of questions the text of the answer, "" for none."""
    score: float = 0.0
    """Classification: log odds of the last label. Questions: how much likelier no answer is than this one."""


def label_predictions(labels: Labels, logits: np.ndarray) -> list[Prediction]:
    """Of classification, choices (one output for each label or choice) and regression (one output): [N, outputs]."""
    logits = np.asarray(logits, dtype=np.float64)
    if not labels.names:
        return [Prediction(float(value)) for value in logits.reshape(len(logits))]
    odds = logits[:, -1] - np.logaddexp.reduce(logits[:, :-1], axis=1)
    chosen = logits.argmax(axis=1)
    return [Prediction(labels.names[n], float(score)) for n, score in zip(chosen, odds, strict=True)]


def word_predictions(
    labels: Labels, examples: Sequence[Example], rows: Sequence[Row], logits: Sequence[np.ndarray]
) -> list[Prediction]:
    """A label for each word of each example, from logits [L, labels] of each row."""
    names = [[labels.names[0]] * len(example.texts) for example in examples]
    for row, scores in zip(rows, logits, strict=True):
        for place, example, word in row.words:
            names[example][word] = labels.names[int(scores[place].argmax())]
    return [Prediction(tuple(found)) for found in names]


def best_candidates(examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, str]:
    """By group, the candidate that is likeliest to be right (ReCoRD)."""
    best: dict[str, tuple[float, str]] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        assert example.group is not None and example.candidate is not None
        if example.group not in best or prediction.score > best[example.group][0]:
            best[example.group] = prediction.score, example.candidate
    return {group: candidate for group, (_, candidate) in best.items()}


def write_predictions(
    task: Task, split: str, examples: Sequence[Example], predictions: Sequence[Prediction], directory: Path
) -> Path:
    """Write what the benchmark takes in, under the name it asks for, into an existing directory, and return the file.

    Splits and tasks that are not handed in are written too: SPLIT.tsv, SPLIT.jsonl or SPLIT.json in the same form, and
    JSON lines of `id` and `prediction` where the benchmark has none.
    Raises ValueError when two examples have the same id, which a benchmark cannot tell apart.
    """
    assert len(examples) == len(predictions)
    ids: set[str] = set()
    for example in examples:
        if example.id in ids:
            raise ValueError(f"{task.name} {split}: two examples have the id {example.id!r}; number them")
        ids.add(example.id)
    write, ending = _WRITERS[task.submission]
    path = directory / task.submission_files.get(split, split + ending)
    write_durably(path, "".join(f"{line}\n" for line in write(task, examples, predictions)))
    return path


def _spelled(task: Task, prediction: Prediction) -> Any:
    spelling: Mapping[Any, Any] = task.submission_labels
    return spelling.get(prediction.value, prediction.value)


def _glue_lines(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[str]:
    yield "index\tprediction"
    for example, prediction in zip(examples, predictions, strict=True):
        value = prediction.value  # numbers are STS-B's, from 0 to 5
        yield f"{example.id}\t{min(max(value, 0.0), 5.0):.3f}" if isinstance(value, float) else f"{example.id}\t{value}"


def _superglue_lines(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[str]:
    for example, prediction in zip(examples, predictions, strict=True):
        yield json.dumps({"idx": int(example.id), "label": _spelled(task, prediction)})


def _multirc_lines(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[str]:
    """A line for each passage: its questions with their answers."""
    numbered = [
        (*map(int, example.id.split("-")), _spelled(task, prediction))
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    for passage, of_passage in groupby(numbered, lambda answer: answer[0]):
        questions = [
            {"idx": question, "answers": [{"idx": answer, "label": label} for _, _, answer, label in answers]}
            for question, answers in groupby(of_passage, lambda answer: answer[1])
        ]
        yield json.dumps({"idx": passage, "passage": {"questions": questions}})


def _record_lines(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[str]:
    for group, candidate in best_candidates(examples, predictions).items():
        yield json.dumps({"idx": int(group), "label": candidate})


def _squad_lines(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[str]:
    yield json.dumps({e.id: p.value for e, p in zip(examples, predictions, strict=True)}, ensure_ascii=False)


def _plain_lines(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[str]:
    for example, prediction in zip(examples, predictions, strict=True):
        yield json.dumps({"id": example.id, "prediction": prediction.value}, ensure_ascii=False)


_Writer = Callable[[Task, Sequence[Example], Sequence[Prediction]], Iterator[str]]
_WRITERS: Mapping[str, tuple[_Writer, str]] = {
    "glue": (_glue_lines, ".tsv"),
    "superglue": (_superglue_lines, ".jsonl"),
    "multirc": (_multirc_lines, ".jsonl"),
    "record": (_record_lines, ".jsonl"),
    "squad": (_squad_lines, ".json"),
    "lines": (_plain_lines, ".jsonl"),
}
