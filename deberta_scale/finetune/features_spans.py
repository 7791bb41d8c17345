"""Questions and contexts → overlapping rows, and a model's scores on these → answers cut from the context."""

from collections.abc import Sequence

import numpy as np

from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.finetune.predictions import Prediction
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.rows import Context, Features, Row, TooLong, with_specials

MAX_QUESTION_TOKENS = 64
MAX_ANSWER_TOKENS = 30


def span_rows(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, stride_tokens: int) -> Features:
    """[CLS] question [SEP] part of the context [SEP]: as many rows as the context needs, a part every `stride_tokens`.

    The target is the answer where the row shows all of it, else [CLS]. Of a question the first MAX_QUESTION_TOKENS
    are shown, and never more than a quarter of a row. Raises ValueError for a stride that would leave tokens out.
    """
    question_tokens = min(MAX_QUESTION_TOKENS, max_length // 4)
    most = max_length - 3 - question_tokens
    if not 0 < stride_tokens <= most:
        raise ValueError(
            f"stride_tokens {stride_tokens}: must be from 1 to {most} with max_length {max_length}, or parts of"
            " contexts would be in no row"
        )
    questions, contexts = TooLong("questions", question_tokens), TooLong("questions with their contexts", max_length)
    encoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    rows: list[Row] = []
    for number, (example, question) in enumerate(
        zip(examples, tokenizer.encode([example.texts[0] for example in examples]), strict=True)
    ):
        text = example.texts[1]
        if text not in encoded:
            ids, offsets = tokenizer.encode_with_offsets(text)
            encoded[text] = ids, _without_white_space(offsets, text)
        questions.count(len(question))
        contexts.count(min(len(question), question_tokens) + len(encoded[text][0]) + 3)
        rows += _windows(number, example, question[:question_tokens], *encoded[text], max_length, stride_tokens)
    notes = questions.notes("their ends were left out") + contexts.notes(f"they make {len(rows):,} rows")
    return Features(rows, notes, num_cut=questions.num_too_long)


def _without_white_space(offsets: np.ndarray, text: str) -> np.ndarray:
    trimmed = offsets.copy()
    for line, (begin, end) in zip(trimmed, offsets, strict=True):
        content = text[begin:end]
        line[0] = begin + len(content) - len(content.lstrip())
        line[1] = max(line[0], begin + len(content.rstrip()))
    return trimmed


def _windows(
    number: int,
    example: Example,
    question: np.ndarray,
    ids: np.ndarray,
    offsets: np.ndarray,
    max_length: int,
    stride_tokens: int,
) -> list[Row]:
    room = max_length - 3 - len(question)
    answer = _tokens_of_answer(example, offsets)
    first_place = len(question) + 2
    rows = []
    for start in range(0, max(1, len(ids) - room + stride_tokens), stride_tokens):
        shown = slice(start, start + room)
        target = (0, 0)
        if answer and start <= answer[0] and answer[1] < start + room:
            target = (first_place + answer[0] - start, first_place + answer[1] - start)
        context = Context(first_place, offsets[shown])
        rows.append(Row((with_specials(question, ids[shown]),), target, number, context=context))
    return rows


def _tokens_of_answer(example: Example, offsets: np.ndarray) -> tuple[int, int] | None:
    """The first and the last token that show a character of the answer."""
    assert isinstance(example.label, tuple)
    begin, end = example.label
    touched = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > begin) & (offsets[:, 0] < offsets[:, 1]))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def span_predictions(
    examples: Sequence[Example],
    rows: Sequence[Row],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
) -> list[Prediction]:
    """The best answer of each example over all its rows, of at most MAX_ANSWER_TOKENS, and how much likelier it is that
    there is none.

    Logits are [L] for each row. The value is never empty unless a context is; see `metrics_answers.with_threshold`.
    The score is the lowest of the rows' scores for [CLS] less that of the answer, as the official SQuAD 2.0 scripts
    want it.
    """
    best = np.full(len(examples), -np.inf)
    no_answer = np.full(len(examples), np.inf)
    texts = [""] * len(examples)
    for row, starts, ends in zip(rows, start_logits, end_logits, strict=True):
        number = row.example
        no_answer[number] = min(no_answer[number], float(starts[0]) + float(ends[0]))
        score, span = _best_span(row, starts, ends)
        if span is not None and score > best[number]:
            best[number] = score
            texts[number] = examples[number].texts[1][slice(*span)]
    return [Prediction(text, float(none - score)) for text, none, score in zip(texts, no_answer, best, strict=True)]


def _best_span(row: Row, starts: np.ndarray, ends: np.ndarray) -> tuple[float, tuple[int, int] | None]:
    assert row.context is not None
    scores, offsets = span_scores(row, starts, ends), row.context.offsets
    if not np.isfinite(scores).any():
        return -np.inf, None
    first, last = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return float(scores[first, last]), (int(offsets[first, 0]), int(offsets[last, 1]))


def span_scores(row: Row, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[n, n] float64: of the n tokens of the context that a row shows, the score of each as the first token of the
    answer with each as its last. -infinity for what is no answer: backwards, over MAX_ANSWER_TOKENS, at white space."""
    assert row.context is not None
    first_place, offsets = row.context
    places = slice(first_place, first_place + len(offsets))
    shows_text = offsets[:, 0] < offsets[:, 1]
    begins = np.where(shows_text, starts[places].astype(np.float64), -np.inf)
    finishes = np.where(shows_text, ends[places].astype(np.float64), -np.inf)
    scores = begins[:, None] + finishes[None, :]
    length = np.arange(len(offsets))[None, :] - np.arange(len(offsets))[:, None] + 1
    scores[(length < 1) | (length > MAX_ANSWER_TOKENS)] = -np.inf
    return scores
