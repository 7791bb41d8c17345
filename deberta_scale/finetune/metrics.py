"""The metrics of every task, by name. All are fractions or correlations, and the higher, the better."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics

from deberta_scale.finetune.metrics_answers import (
    answer_exact_match,
    answer_f1,
    best_answer_exact_match,
    best_answer_f1,
    entity_answer_exact_match,
    entity_answer_f1,
)
from deberta_scale.finetune.metrics_entities import entity_scores
from deberta_scale.finetune.predictions import Prediction
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.tasks import Task

Metric = Callable[[Sequence[Example], Sequence[Prediction]], float]


def evaluate(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
    """The task's metrics, by name, in its order: early stopping looks at the first.

    Raises ValueError when an example has no label.
    """
    assert len(examples) == len(predictions)
    unlabelled = sum(example.label is None for example in examples)
    if unlabelled or not examples:
        raise ValueError(
            f"{task.name}: {unlabelled:,} of {len(examples):,} examples have no label to measure against; evaluate on a"
            " split with labels, and write files of predictions for the others"
        )
    return {name: METRICS[name](examples, predictions) for name in task.metrics}


def _labels_and_values(examples: Sequence[Example], predictions: Sequence[Prediction]) -> tuple[list[Any], list[Any]]:
    return [example.label for example in examples], [prediction.value for prediction in predictions]


def accuracy(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    return float(metrics.accuracy_score(*_labels_and_values(examples, predictions)))


def f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """Of the label "1"; 0 when nothing has it. Over the answers of MultiRC this is its F1a."""
    return float(metrics.f1_score(*_labels_and_values(examples, predictions), pos_label="1", zero_division=0))


def macro_f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """The mean over labels that are there or were predicted."""
    return float(metrics.f1_score(*_labels_and_values(examples, predictions), average="macro", zero_division=0))


def matthews(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """Matthews correlation; 0 when all predictions are the same."""
    return float(metrics.matthews_corrcoef(*_labels_and_values(examples, predictions)))


def pearson(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """0 when all predictions, or labels, are the same: there is no correlation to speak of."""
    return _correlation(stats.pearsonr, examples, predictions)


def spearman(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """As `pearson`, of ranks."""
    return _correlation(stats.spearmanr, examples, predictions)


def _correlation(function: Any, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    labels, values = map(np.array, _labels_and_values(examples, predictions))
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(values) == 0:
        return 0.0
    return float(function(labels, values).statistic)


def negative_squared_error(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """The mean, negative so that higher is better."""
    return -float(metrics.mean_squared_error(*_labels_and_values(examples, predictions)))


def question_exact_match(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """The fraction of groups whose examples are all right (MultiRC)."""
    right = [
        all(example.label == prediction.value for example, prediction in pairs)
        for _, pairs in groupby(zip(examples, predictions, strict=True), lambda pair: pair[0].group)
    ]
    return sum(right) / len(right)


def entity_precision(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    return entity_scores(*_labels_and_values(examples, predictions)).precision


def entity_recall(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    return entity_scores(*_labels_and_values(examples, predictions)).recall


def entity_f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    return entity_scores(*_labels_and_values(examples, predictions)).f1


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        accuracy,
        f1,
        macro_f1,
        matthews,
        pearson,
        spearman,
        negative_squared_error,
        question_exact_match,
        entity_precision,
        entity_recall,
        entity_f1,
        answer_f1,
        answer_exact_match,
        best_answer_f1,
        best_answer_exact_match,
        entity_answer_f1,
        entity_answer_exact_match,
    )
}
