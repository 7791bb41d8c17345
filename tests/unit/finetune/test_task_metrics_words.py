"""Metrics of our own, against values worked by hand."""

import pytest

from deberta_scale.finetune.metrics_answers import (
    answer_exact_match,
    answer_f1,
    best_answer_exact_match,
    best_answer_f1,
    best_threshold,
    entity_answer_exact_match,
    entity_answer_f1,
    normalised,
    text_f1,
    with_threshold,
)
from deberta_scale.finetune.metrics_entities import entities, entity_scores
from deberta_scale.finetune.predictions import Prediction
from deberta_scale.finetune.readers import Example


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER", {("PER", 0, 2)}),
        ("O I-PER", {("PER", 1, 2)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("B-PER I-PER B-PER I-PER", {("PER", 0, 2), ("PER", 2, 4)}),
        ("I-LOC I-PER I-LOC", {("LOC", 0, 1), ("PER", 1, 2), ("LOC", 2, 3)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_begin_and_end_as_in_conlleval(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_entity_f1() -> None:
    """4 labelled, 3 predicted, of which 2 are right: one has another end, one is missing."""
    labels = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O", "B-MISC", "I-MISC"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-ORG", "O", "O", "O"]]
    assert entity_scores(labels, predicted) == pytest.approx((2 / 3, 2 / 4, 2 * 2 / 7))


def test_an_entity_of_another_kind_is_wrong_and_nothing_found_is_no_error() -> None:
    assert entity_scores([["B-PER"]], [["B-LOC"]]) == (0.0, 0.0, 0.0)
    assert entity_scores([["B-PER"]], [["O"]]) == (0.0, 0.0, 0.0)
    assert entity_scores([["O"]], [["O"]]) == (0.0, 0.0, 0.0)


def test_entities_do_not_reach_over_sentences() -> None:
    assert entity_scores([["B-PER"], ["I-PER"]], [["B-PER"], ["I-PER"]]) == (1.0, 1.0, 1.0)


def test_normalised_answers() -> None:
    assert normalised(" The  U.S.'s \n(an) Army ") == "uss army"
    assert normalised("theatre and anthem") == "theatre and anthem"


@pytest.mark.parametrize(
    ("predicted", "answer", "f1"),
    [
        ("the old king", "an Old King!", 1.0),
        ("old king", "king of Rome", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("no no no", "no no", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("king", "Rome", 0.0),
        ("", "", 1.0),
        ("the", "", 1.0),
        ("king", "", 0.0),
        ("", "king", 0.0),
    ],
)
def test_f1_of_two_texts(predicted: str, answer: str, f1: float) -> None:
    assert text_f1(predicted, answer) == pytest.approx(f1)


def asked(*answers: str) -> Example:
    return Example(("q", "c"), (0, 0), answers=answers)


def test_squad_takes_the_answer_that_agrees_best() -> None:
    examples = [asked("Rome", "the city of Rome"), asked("king")]
    predictions = [Prediction("city of Rome"), Prediction("old king")]
    assert answer_exact_match(examples, predictions) == 0.5
    assert answer_f1(examples, predictions) == pytest.approx((1 + 2 / 3) / 2)


def test_answers_of_articles_and_signs_alone_do_not_count_beside_others() -> None:
    assert answer_f1([asked("the", "Rome")], [Prediction("")]) == 0.0
    assert answer_f1([asked("the")], [Prediction("")]) == 1.0


def test_squad_2_answers_nothing_above_the_best_threshold() -> None:
    """Sorted by score the gains of answering are +1, +1/2, -1, +1: best are the first two, or all but for the third."""
    examples = [asked("Rome"), asked("old king of Rome"), asked(), asked("Ann")]
    values = [("Rome", -3.0), ("Rome", -1.0), ("Bob", 0.5), ("sang", 2.0)]
    predictions = [Prediction(value, score) for value, score in values]
    assert best_threshold(examples, predictions) == -1.0
    assert [p.value for p in with_threshold(predictions, -1.0)] == ["Rome", "Rome", "", ""]
    assert best_answer_f1(examples, predictions) == pytest.approx((1 + 2 * (1 / 4) / (1 / 4 + 1) + 1 + 0) / 4)
    assert best_answer_exact_match(examples, predictions) == 2 / 4
    assert answer_f1(examples, predictions) == pytest.approx((1 + 0.4 + 0 + 0) / 4)


def test_where_every_question_has_an_answer_all_are_answered() -> None:
    examples = [asked("Rome"), asked("Ann")]
    predictions = [Prediction("Rome", -1.0), Prediction("Bob", 5.0)]
    assert with_threshold(predictions, best_threshold(examples, predictions)) == predictions


def test_where_no_question_has_an_answer_none_is_answered() -> None:
    examples, predictions = [asked(), asked()], [Prediction("Ann", -9.0), Prediction("Bob", 1.0)]
    assert [p.value for p in with_threshold(predictions, best_threshold(examples, predictions))] == ["", ""]


def test_predictions_of_one_score_are_answered_together() -> None:
    examples = [asked("Rome"), asked(), asked()]
    predictions = [Prediction("Rome", 0.0), Prediction("Ann", 0.0), Prediction("Bob", 0.0)]
    assert best_threshold(examples, predictions) == float("-inf")


def test_record_measures_the_likeliest_entity_of_a_query() -> None:
    queries = {"1": (("Ann Lee", "Ann"), ["Bob", "Ann Lee"]), "2": (("King Bob",), ["Bob", "Rome"])}
    examples = [
        Example(("p", "q"), "0", group=group, answers=answers, candidate=candidate)
        for group, (answers, candidates) in queries.items()
        for candidate in candidates
    ]
    predictions = [Prediction("0", score) for score in (-3.0, -1.0, 2.0, 1.0)]
    assert entity_answer_exact_match(examples, predictions) == 0.5
    assert entity_answer_f1(examples, predictions) == pytest.approx((1 + 2 / 3) / 2)
