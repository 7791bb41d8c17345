"""What a model answers, in a form that knows nothing of its tokenizer, so that the answers of several can be averaged.

Classes and choices: log probabilities [N]. Numbers: [1]. Labelled words: log probabilities [words, N]. Questions: log
probabilities of the likeliest spans of characters of the context, and of no answer; all others count as impossible.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import log_softmax, logsumexp

from deberta_scale.finetune.features_spans import span_scores
from deberta_scale.finetune.predictions import Prediction, label_predictions
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.rows import Row
from deberta_scale.finetune.tasks import Task

SPANS_KEPT = 20
Span = tuple[int, int] | None
"""First character of the context and the one behind the last; None for no answer."""
Spans = Mapping[Span, float]
Answer = np.ndarray | Spans


def answers_of(
    task: Task, examples: Sequence[Example], rows: Sequence[Row], logits: Sequence[np.ndarray]
) -> list[Answer]:
    """An answer for each example, from the logits of its rows, fp32 without padding: [N] labels, [1] number, [C]
    choices, [L, N] labels of tokens, [2, L] first and last token of a span."""
    if task.head == "tokens":
        return _word_answers(len(task.labels.names), examples, rows, logits)
    if task.head == "span":
        return _span_answers(len(examples), rows, logits)
    assert [row.example for row in rows] == list(range(len(examples))), "texts and choices make one row each"
    values = np.stack(logits).astype(np.float64)
    return list(values if task.head == "regression" else log_softmax(values, axis=-1))


def _word_answers(
    num_labels: int, examples: Sequence[Example], rows: Sequence[Row], logits: Sequence[np.ndarray]
) -> list[Answer]:
    """A word that no row shows could be anything."""
    found = [np.full((len(example.texts), num_labels), -np.log(num_labels)) for example in examples]
    for row, scores in zip(rows, logits, strict=True):
        for place, example, word in row.words:
            found[example][word] = log_softmax(scores[place].astype(np.float64))
    return list(found)


def _span_answers(num_examples: int, rows: Sequence[Row], logits: Sequence[np.ndarray]) -> list[Answer]:
    """Of a span that several rows show, and of no answer, the score counts that `span_predictions` takes too."""
    found: list[dict[tuple[int, int], float]] = [{} for _ in range(num_examples)]
    no_answer = np.full(num_examples, np.inf)
    for row, (starts, ends) in zip(rows, logits, strict=True):
        no_answer[row.example] = min(no_answer[row.example], float(starts[0]) + float(ends[0]))
        of_example = found[row.example]
        for span, score in _likeliest(row, starts, ends):
            of_example[span] = max(score, of_example.get(span, -np.inf))
    return [_as_log_probabilities(spans, none) for spans, none in zip(found, no_answer, strict=True)]


def _likeliest(row: Row, starts: np.ndarray, ends: np.ndarray) -> list[tuple[tuple[int, int], float]]:
    assert row.context is not None
    scores, offsets = span_scores(row, starts, ends), row.context.offsets
    flat = scores.ravel()
    best = np.argsort(-flat, kind="stable")[:SPANS_KEPT]
    firsts, lasts = np.unravel_index(best[np.isfinite(flat[best])], scores.shape)
    return [
        ((int(offsets[first, 0]), int(offsets[last, 1])), float(scores[first, last]))
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _as_log_probabilities(spans: Mapping[tuple[int, int], float], none: float) -> Spans:
    kept: dict[Span, float] = dict(sorted(spans.items(), key=lambda pair: -pair[1])[:SPANS_KEPT])
    kept[None] = none
    return dict(zip(kept, log_softmax(list(kept.values())).tolist(), strict=True))


def mean_answers(task: Task, of_models: Sequence[Sequence[Answer]]) -> list[Answer]:
    """The mean over models of probabilities, or of numbers. A span that a model does not keep has probability 0."""
    mean: Callable[[Sequence[Answer]], Answer] = _mean_spans if task.head == "span" else _mean_arrays(task)
    return [mean(answers) for answers in zip(*of_models, strict=True)]


def _mean_arrays(task: Task) -> Callable[[Sequence[Answer]], np.ndarray]:
    def mean(answers: Sequence[Answer]) -> np.ndarray:
        values = np.stack([np.asarray(answer) for answer in answers])
        if task.head == "regression":
            return values.mean(axis=0)
        mixed: np.ndarray = logsumexp(values, axis=0) - np.log(len(answers))
        return mixed

    return mean


def _mean_spans(answers: Sequence[Answer]) -> Spans:
    spans = [answer for answer in answers if isinstance(answer, Mapping)]
    every = dict.fromkeys(span for of_model in spans for span in of_model)
    mixed = [float(logsumexp([of_model.get(span, -np.inf) for of_model in spans])) for span in every]
    return {span: value - np.log(len(spans)) for span, value in zip(every, mixed, strict=True)}


def predictions_from(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Prediction]:
    """As `finetune.predictions` and `span_predictions` make them of one model's logits."""
    if task.head == "span":
        return [_span_prediction(*pair) for pair in zip(examples, answers, strict=True)]
    arrays = [np.asarray(answer) for answer in answers]
    if task.head == "tokens":
        return [Prediction(tuple(task.labels.names[n] for n in array.argmax(axis=-1))) for array in arrays]
    return label_predictions(task.labels, np.stack(arrays))


def _span_prediction(example: Example, answer: Answer) -> Prediction:
    assert isinstance(answer, Mapping)
    spans = {span: value for span, value in answer.items() if span is not None}
    if not spans:
        return Prediction("", np.inf)
    best = max(spans, key=lambda span: spans[span])
    return Prediction(example.texts[1][slice(*best)], answer[None] - spans[best])
