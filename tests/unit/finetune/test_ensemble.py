"""Answers of models with other tokenizers are averaged; those of one model are what its logits say."""

import numpy as np
import pytest

from deberta_scale.evaluation.answers import Answer, answers_of, mean_answers, predictions_from
from deberta_scale.finetune.features_spans import span_predictions
from deberta_scale.finetune.predictions import label_predictions, word_predictions
from deberta_scale.finetune.readers import NO_ANSWER, Example
from deberta_scale.finetune.rows import Context, Row
from deberta_scale.finetune.tasks import TASKS

ENTITIES = TASKS["conll-2003"]
NUM_TAGS = len(ENTITIES.labels.names)
CONTEXT = "Ann sang in Rome"
QUESTION = Example(("Where?", CONTEXT), NO_ANSWER)


def row(number: int = 0, length: int = 3, **more: object) -> Row:
    return Row((np.zeros(length, dtype=np.int32),), None, number, **more)  # type: ignore[arg-type]


def logits_of(*probabilities: float) -> np.ndarray:
    """Shifted, which must not matter."""
    return (np.log(probabilities) + 3.0).astype(np.float32)


def test_probabilities_are_averaged_not_logits_and_not_votes() -> None:
    task, examples = TASKS["mnli"], [Example(("a", "b"))]
    models = [
        answers_of(task, examples, [row()], [logits_of(*probabilities)])
        for probabilities in [(0.5, 0.4, 0.1), (0.45, 0.4, 0.15), (0.001, 0.6, 0.399)]
    ]
    mean = mean_answers(task, models)
    np.testing.assert_allclose(np.exp(np.asarray(mean[0])), [0.317, 1.4 / 3, 0.649 / 3], rtol=1e-4)
    (prediction,) = predictions_from(task, examples, mean)
    assert prediction.value == "neutral"  # two of three models say contradiction
    assert prediction.score == pytest.approx(np.log(0.649 / (3 - 0.649)), rel=1e-4)


def test_numbers_are_averaged() -> None:
    task, examples = TASKS["sts-b"], [Example(("a", "b")), Example(("c", "d"))]
    rows = [row(0), row(1)]
    models = [answers_of(task, examples, rows, [np.array([a]), np.array([b])]) for a, b in [(1.0, 4.0), (2.0, 5.0)]]
    assert [p.value for p in predictions_from(task, examples, mean_answers(task, models))] == [1.5, 4.5]


def test_words_are_averaged_wherever_their_tokens_stand() -> None:
    """One tokenizer has a piece for each word, the other two for the first word and the second in another row."""
    examples = [Example(("Ann", "sang"))]

    def scores(length: int, **tags: tuple[int, float]) -> np.ndarray:
        logits = np.zeros((length, NUM_TAGS), dtype=np.float32)
        for place, (tag, value) in tags.items():
            logits[int(place[1:]), tag] = value
        return logits

    one = answers_of(
        ENTITIES, examples, [row(0, 4, words=((1, 0, 0), (2, 0, 1)))], [scores(4, p1=(3, 2.0), p2=(1, 1.0))]
    )
    rows = [row(0, 4, words=((1, 0, 0),)), row(0, 3, words=((1, 0, 1),))]
    other = answers_of(ENTITIES, examples, rows, [scores(4, p1=(3, 1.0), p2=(5, 9.0)), scores(3, p1=(0, 4.0))])
    (prediction,) = predictions_from(ENTITIES, examples, mean_answers(ENTITIES, [one, other]))
    assert prediction.value == (ENTITIES.labels.names[3], "O")


def question_row(offsets: list[tuple[int, int]]) -> Row:
    """[CLS] question [SEP] context [SEP] of one tokenizer."""
    return row(0, len(offsets) + 4, context=Context(3, np.array(offsets).reshape(-1, 2)))


WORDS = question_row([(0, 3), (4, 8), (9, 11), (12, 16)])
PIECES = question_row([(0, 1), (1, 3), (4, 8), (9, 11), (12, 14), (14, 16)])


def ends(length: int, first: dict[int, float], last: dict[int, float]) -> np.ndarray:
    """Logits [2, L] that are low but at these places."""
    logits = np.full((2, length), -9.0, dtype=np.float32)
    for line, values in zip(logits, (first, last), strict=True):
        line[list(values)] = list(values.values())
    return logits


def test_spans_of_characters_are_averaged_over_tokenizers() -> None:
    task = TASKS["squad-2.0"]
    # "Ann" is a little likelier than "Rome" for the one, which the other, in pieces, is sure of.
    one = answers_of(task, [QUESTION], [WORDS], [ends(8, {3: 2.0, 6: 1.8}, {3: 2.0, 6: 1.8})])
    other = answers_of(task, [QUESTION], [PIECES], [ends(10, {3: 0.0, 7: 3.0}, {4: 0.0, 8: 3.0})])
    assert predictions_from(task, [QUESTION], one)[0].value == "Ann"
    mean = mean_answers(task, [one, other])
    (prediction,) = predictions_from(task, [QUESTION], mean)
    assert prediction.value == "Rome"
    assert isinstance(mean[0], dict) and isinstance(one[0], dict) and isinstance(other[0], dict)
    for span in [(12, 16), (0, 3), None]:
        expected = (np.exp(one[0][span]) + np.exp(other[0][span])) / 2
        assert np.exp(mean[0][span]) == pytest.approx(expected)
    assert prediction.score == pytest.approx(mean[0][None] - mean[0][(12, 16)])
    in_the_middle_of_a_word = (12, 14)
    assert in_the_middle_of_a_word not in one[0]
    assert mean[0][in_the_middle_of_a_word] == pytest.approx(other[0][in_the_middle_of_a_word] - np.log(2))


def test_a_question_without_context_has_no_answer() -> None:
    empty = Example(("Where?", ""), NO_ANSWER)
    answers = answers_of(TASKS["squad-2.0"], [empty], [question_row([])], [ends(4, {0: 1.0}, {0: 1.0})])
    assert predictions_from(TASKS["squad-2.0"], [empty], mean_answers(TASKS["squad-2.0"], [answers] * 2))[0].value == ""


def test_one_model_predicts_what_its_logits_say() -> None:
    random, squad = np.random.default_rng(5), TASKS["squad-2.0"]
    of_spans = [random.normal(size=(2, 8)).astype(np.float32), random.normal(size=(2, 10)).astype(np.float32)]
    for rows, logits_of_rows in [([WORDS, PIECES], of_spans), ([PIECES, WORDS], of_spans[::-1])]:
        (found,) = predictions_from(squad, [QUESTION], answers_of(squad, [QUESTION], rows, logits_of_rows))
        starts, lasts = zip(*logits_of_rows, strict=True)
        (expected,) = span_predictions([QUESTION], rows, starts, lasts)
        assert (found.value, found.score) == (expected.value, pytest.approx(expected.score))

    mnli, examples = TASKS["mnli"], [Example(("a", "b"))] * 4
    logits = random.normal(size=(4, 3)).astype(np.float32)
    answers: list[Answer] = answers_of(mnli, examples, [row(n) for n in range(4)], list(logits))
    of_labels = zip(predictions_from(mnli, examples, answers), label_predictions(mnli.labels, logits), strict=True)
    assert all(a.value == b.value and a.score == pytest.approx(b.score) for a, b in of_labels)

    sentence, word_row = Example(("Ann", "sang")), row(0, 4, words=((1, 0, 0), (2, 0, 1)))
    of_words = [random.normal(size=(4, NUM_TAGS)).astype(np.float32)]
    assert predictions_from(
        ENTITIES, [sentence], answers_of(ENTITIES, [sentence], [word_row], of_words)
    ) == word_predictions(ENTITIES.labels, [sentence], [word_row], of_words)
