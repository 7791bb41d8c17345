"""Scores of classes and calibration, against values worked by hand; labels of other models."""

import numpy as np
import pytest

from deberta_scale.evaluation.answers import Answer
from deberta_scale.evaluation.labels import label_order
from deberta_scale.evaluation.quality import calibration, class_scores
from deberta_scale.finetune.predictions import Prediction
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.tasks import TASKS

RTE = TASKS["rte"]


def test_scores_of_each_label() -> None:
    names = {"e": "entailment", "n": "not_entailment"}
    examples = [Example((), names[letter]) for letter in "eeenn"]
    predictions = [Prediction(names[letter]) for letter in "eennn"]
    no, yes = class_scores(RTE, examples, predictions)
    assert (no.name, no.precision, no.recall, no.support) == ("not_entailment", pytest.approx(2 / 3), 1.0, 2)
    assert (yes.name, yes.precision, yes.recall, yes.f1, yes.support) == (
        "entailment", 1.0, pytest.approx(2 / 3), pytest.approx(0.8), 3,
    )  # fmt: skip


def test_scores_of_each_kind_of_entity() -> None:
    examples = [Example((), ("B-PER", "I-PER", "O", "B-LOC")), Example((), ("B-LOC", "O"))]
    predictions = [Prediction(("B-PER", "O", "O", "B-LOC")), Prediction(("B-PER", "O"))]
    scores = {each.name: each for each in class_scores(TASKS["conll-2003"], examples, predictions)}
    assert list(scores) == ["LOC", "MISC", "ORG", "PER"]
    assert (scores["LOC"].precision, scores["LOC"].recall, scores["LOC"].support) == (1.0, 0.5, 2)
    assert (scores["PER"].precision, scores["PER"].recall, scores["PER"].support) == (0.0, 0.0, 1)
    assert (scores["ORG"].f1, scores["ORG"].support) == (0.0, 0)


def answers(confidences: list[float]) -> list[Answer]:
    """For the label entailment."""
    return [np.log([1 - confidence, confidence]) for confidence in confidences]


def test_calibration_of_thirty_answers_in_fifteen_bins() -> None:
    # Ten of 0.6, none of which is right, among twenty of 0.9 that are all right; each bin holds two.
    examples = [Example((), "entailment" if n % 3 else "not_entailment") for n in range(30)]
    found = calibration(RTE, examples, answers([0.9 if n % 3 else 0.6 for n in range(30)]))
    assert found is not None
    assert found.expected_calibration_error == pytest.approx((10 * abs(0.6 - 0) + 20 * abs(0.9 - 1)) / 30)
    brier = (10 * 2 * 0.6**2 + 20 * 2 * 0.1**2) / 30
    assert found.brier_score == pytest.approx(brier)


def test_the_temperature_undoes_what_made_the_model_too_sure() -> None:
    right = ["entailment"] * 7 + ["not_entailment"] * 3
    examples = [Example((), label) for label in right * 3]
    logit = np.log(0.7 / 0.3)
    too_sure = 1 / (1 + np.exp(-3 * logit))
    found = calibration(RTE, examples, answers([float(too_sure)] * 30))
    assert found is not None
    assert found.temperature == pytest.approx(3.0, rel=1e-3)


def test_numbers_and_questions_have_no_classes() -> None:
    for name in ("sts-b", "squad-1.1"):
        assert class_scores(TASKS[name], [Example((), 1.0)], [Prediction(1.0)]) == []
        assert calibration(TASKS[name], [Example((), 1.0)], [np.array([1.0])]) is None


def test_labels_are_matched_by_name() -> None:
    labels = TASKS["mnli"].labels
    assert label_order(labels, ["ENTAILMENT", "Neutral", "contradiction"], "other").outputs == (2, 1, 0)
    assert label_order(TASKS["cola"].labels, ["acceptable", "unacceptable"], "other").outputs == (1, 0)
    unnamed = label_order(labels, ["LABEL_0", "LABEL_1", "LABEL_2"], "other")
    assert unnamed.outputs == (0, 1, 2)
    assert "taken in the task's order: contradiction, neutral, entailment" in unnamed.notes[0]


@pytest.mark.parametrize(
    "found", [["positive", "negative"], ["neutral", "entailment", "entailment"], ["LABEL_0", "LABEL_1"]]
)
def test_other_labels_are_refused_with_both_sets(found: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"other has the labels .*{found[0]}.*, the task 'contradiction', 'neutral'"):
        label_order(TASKS["mnli"].labels, found, "other")
