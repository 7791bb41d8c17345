"""The metrics of the table, against values worked by hand."""

import math

import pytest

from deberta_scale.finetune.metrics import METRICS, evaluate
from deberta_scale.finetune.predictions import Prediction
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.tasks import TASKS, Task, own_task


def measured(name: str, labels: list[str] | list[float], values: list[str] | list[float]) -> float:
    return METRICS[name]([Example((), label) for label in labels], [Prediction(value) for value in values])


LABELS, VALUES = list("1110000000"), list("1101000000")
"""True positives 2, false positives 1, false negatives 1, true negatives 6."""


def test_accuracy() -> None:
    assert measured("accuracy", LABELS, VALUES) == pytest.approx(8 / 10)


def test_f1_is_that_of_the_label_1() -> None:
    assert measured("f1", LABELS, VALUES) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert measured("f1", list("110"), list("000")) == 0.0


def test_macro_f1_is_the_mean_over_labels() -> None:
    assert measured("macro_f1", LABELS, VALUES) == pytest.approx((2 * 2 / 6 + 2 * 6 / 14) / 2)
    assert measured("macro_f1", ["a", "b", "c"], ["a", "b", "b"]) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_matthews() -> None:
    assert measured("matthews", LABELS, VALUES) == pytest.approx((2 * 6 - 1 * 1) / math.sqrt(3 * 3 * 7 * 7))
    assert measured("matthews", LABELS, ["0"] * 10) == 0.0


def test_pearson_and_spearman() -> None:
    labels, values = [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 4.0, 3.0]
    # Deviations -1.5 -0.5 0.5 1.5 and -1.5 -0.5 1.5 0.5: products 2.25 + 0.25 + 0.75 + 0.75, squares 5 and 5.
    assert measured("pearson", labels, values) == pytest.approx(4 / 5)
    assert measured("spearman", labels, [1.0, 20.0, 400.0, 30.0]) == pytest.approx(4 / 5)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_there_is_no_correlation_with_a_constant(name: str) -> None:
    assert measured(name, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == 0.0
    assert measured(name, [2.0, 2.0], [1.0, 2.0]) == 0.0


def test_squared_errors_count_downwards() -> None:
    assert measured("negative_squared_error", [1.0, 2.0], [1.5, 1.0]) == pytest.approx(-(0.25 + 1) / 2)


def test_multirc_counts_answers_and_whole_questions() -> None:
    labels, values, groups = list("10110"), list("10100"), ["0-1", "0-1", "0-2", "0-2", "1-3"]
    examples = [Example((), label, group=group) for label, group in zip(labels, groups, strict=True)]
    assert evaluate(TASKS["multirc"], examples, [Prediction(value) for value in values]) == {
        "f1": pytest.approx(2 * 2 / (2 * 2 + 0 + 1)),
        "question_exact_match": pytest.approx(2 / 3),
    }


def test_conll() -> None:
    examples = [Example(("Ann", "Lee"), ("B-PER", "I-PER")), Example(("Rome",), ("B-LOC",))]
    predictions = [Prediction(("B-PER", "I-PER")), Prediction(("B-ORG",))]
    scores = evaluate(TASKS["conll-2003"], examples, predictions)
    assert scores == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5}


@pytest.mark.parametrize("task", [*TASKS.values(), own_task("a", labels=(), max_length=8)], ids=lambda task: task.name)
def test_every_metric_of_the_table_is_there(task: Task) -> None:
    assert task.metrics and set(task.metrics) <= set(METRICS)


def test_examples_without_labels_are_not_measured() -> None:
    with pytest.raises(ValueError, match="sst-2: 1 of 2 examples have no label to measure against"):
        evaluate(TASKS["sst-2"], [Example(("a",), "1"), Example(("b",))], [Prediction("1"), Prediction("1")])
