"""How good answers are beyond the task's metrics: by class, and whether probabilities can be believed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import precision_recall_fscore_support

from deberta_scale.evaluation.answers import Answer
from deberta_scale.finetune.metrics_entities import entities
from deberta_scale.finetune.predictions import Prediction
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.tasks import Task

Entities = set[tuple[str, int, int]]
NUM_BINS = 15
TEMPERATURES = (0.05, 20.0)
"""The lowest and the highest that are tried."""


@dataclass(frozen=True)
class ClassScores:
    """Of one label, or one kind of entity; what would divide by 0 is 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    """How many there are in the data."""


def class_scores(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[ClassScores]:
    """By label in the task's order, by kind of entity for labelled words; none for numbers and questions."""
    labels, values = [example.label for example in examples], [prediction.value for prediction in predictions]
    if task.head == "tokens":
        kinds = sorted({name[2:] for name in task.labels.names if name != "O"})
        found, right = ([entities(tags) for tags in of_all] for of_all in (values, labels))  # type: ignore[arg-type]
        return [_of_kind(kind, right, found) for kind in kinds]
    if not task.labels.names:
        return []
    columns = precision_recall_fscore_support(labels, values, labels=list(task.labels.names), zero_division=0)
    return [
        ClassScores(name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(task.labels.names, *columns, strict=True)
    ]


def _of_kind(kind: str, right: Sequence[Entities], found: Sequence[Entities]) -> ClassScores:
    num_both = sum(_count(kind, ours & theirs) for ours, theirs in zip(right, found, strict=True))
    support, num_found = (sum(_count(kind, each) for each in of_all) for of_all in (right, found))
    precision, recall = num_both / max(1, num_found), num_both / max(1, support)
    return ClassScores(kind, precision, recall, 2 * num_both / max(1, support + num_found), support)


def _count(kind: str, found: Entities) -> int:
    return sum(entity[0] == kind for entity in found)


@dataclass(frozen=True)
class Calibration:
    """Whether a probability of 0.8 is right 8 times of 10. All are better when they are low."""

    expected_calibration_error: float
    """The mean distance of confidence from accuracy over NUM_BINS bins with as many examples each."""
    brier_score: float
    """The mean over examples of the squared distance from the right answer, summed over labels: from 0 to 2."""
    temperature: float
    """By which logits are divided for the lowest cross-entropy on these examples; above 1 the model was too sure."""
    error_at_temperature: float
    """The expected calibration error with it, on the same examples, so it flatters."""


def calibration(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> Calibration | None:
    """Of classes, choices and labelled words; None for numbers and questions."""
    if not task.labels.names:
        return None
    log_probabilities = np.concatenate([np.atleast_2d(np.asarray(answer)) for answer in answers])
    names = [name for e in examples for name in (e.label if isinstance(e.label, tuple) else (e.label,))]
    right = np.array([task.labels.names.index(str(name)) for name in names])
    temperature = _best_temperature(log_probabilities, right)
    probabilities = np.exp(log_probabilities)
    one_hot = np.eye(probabilities.shape[1])[right]
    return Calibration(
        _calibration_error(probabilities, right),
        float(np.square(probabilities - one_hot).sum(axis=1).mean()),
        temperature,
        _calibration_error(np.exp(log_softmax(log_probabilities / temperature, axis=1)), right),
    )


def _calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """[N, labels] and [N] → the mean over examples, each with the distance of its bin."""
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == right
    bins = np.array_split(np.argsort(confidence, kind="stable"), NUM_BINS)
    distances = [abs(float(confidence[part].sum() - is_right[part].sum())) for part in bins]
    return sum(distances) / len(right)


def _best_temperature(log_probabilities: np.ndarray, right: np.ndarray) -> float:
    def cross_entropy(log_temperature: float) -> float:
        scaled = log_softmax(log_probabilities / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(right)), right].mean())

    found = minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))
