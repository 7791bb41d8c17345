"""Scores of answers in words, as the official script of SQuAD 2.0 defines them; those of ReCoRD use the same."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from deberta_scale.finetune.predictions import Prediction, best_candidates
from deberta_scale.finetune.readers import Example

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

Score = Callable[[str, str], float]


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, articles, and more than one space between words."""
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def text_exact_match(predicted: str, answer: str) -> float:
    """1 when both are the same once normalised."""
    return float(normalised(predicted) == normalised(answer))


def text_f1(predicted: str, answer: str) -> float:
    """Of the words in common; of an empty text, 1 when both are empty."""
    words, answer_words = normalised(predicted).split(), normalised(answer).split()
    if not words or not answer_words:
        return float(words == answer_words)
    num_common = sum((Counter(words) & Counter(answer_words)).values())
    return 2 * num_common / (len(words) + len(answer_words))


def best_score(score: Score, predicted: str, answers: Sequence[str]) -> float:
    """Against the answer it agrees with best. Answers that are nothing once normalised do not count, unless there are
    no others: then, as without any, the right answer is none, ""."""
    real = [answer for answer in answers if normalised(answer)] or [""]
    return max(score(predicted, answer) for answer in real)


def answer_f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    return _mean_best(text_f1, examples, predictions)


def answer_exact_match(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    return _mean_best(text_exact_match, examples, predictions)


def _mean_best(score: Score, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    pairs = zip(examples, predictions, strict=True)
    return float(np.mean([best_score(score, str(p.value), e.answers) for e, p in pairs]))


def best_answer_f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """SQuAD 2.0: at the best threshold for these examples, as its results are reported."""
    return answer_f1(examples, with_threshold(predictions, best_threshold(examples, predictions)))


def best_answer_exact_match(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """SQuAD 2.0: at the threshold that is best for F1."""
    return answer_exact_match(examples, with_threshold(predictions, best_threshold(examples, predictions)))


def entity_answer_f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """ReCoRD: the mean over queries of the entity that was likeliest."""
    return _mean_best_candidate(text_f1, examples, predictions)


def entity_answer_exact_match(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    return _mean_best_candidate(text_exact_match, examples, predictions)


def _mean_best_candidate(score: Score, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    answers = {example.group: example.answers for example in examples}
    chosen = best_candidates(examples, predictions).items()
    return float(np.mean([best_score(score, candidate, answers[group]) for group, candidate in chosen]))


def with_threshold(predictions: Sequence[Prediction], threshold: float) -> list[Prediction]:
    """SQuAD 2.0: no answer, "", where the score for none is above the threshold."""
    return [replace(each, value="") if each.score > threshold else each for each in predictions]


def best_threshold(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """The threshold with the best F1 on these examples; of several that are as good, the one with most answers, so that
    nothing changes where every question has an answer.

    It is a score of a prediction, or -infinity where it is best to answer nothing.
    """
    answered = [best_score(text_f1, str(p.value), e.answers) for e, p in zip(examples, predictions, strict=True)]
    silent = [best_score(text_f1, "", example.answers) for example in examples]
    scores = np.array([prediction.score for prediction in predictions])
    thresholds, group = np.unique(scores, return_inverse=True)
    gains = np.bincount(group, weights=np.subtract(answered, silent), minlength=len(thresholds))
    totals = np.concatenate([[0.0], np.cumsum(gains)])
    # Sums of the same numbers in another order differ in their last digits.
    best = int(np.flatnonzero(totals >= totals.max() - 1e-9)[-1])
    return float(thresholds[best - 1]) if best else float("-inf")
