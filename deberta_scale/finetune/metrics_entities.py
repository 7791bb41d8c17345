"""Scores of named entities as CoNLL's evaluation script `conlleval` defines them."""

from collections.abc import Sequence
from typing import NamedTuple


class EntityScores(NamedTuple):
    """Over all entities, whatever their kind."""

    precision: float
    recall: float
    f1: float


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, word behind the last) of each entity in a sentence.

    One begins at B-, and at I- where none of its kind goes on; it ends where the next word does not go on with I- and
    the same kind.
    """
    found = set()
    begin = 0
    for place, (tag, following) in enumerate(zip(tags, [*tags[1:], "O"], strict=False)):
        if tag == "O":
            continue
        kind = tag[2:]
        if tag.startswith("B-") or place == 0 or tags[place - 1][2:] != kind:
            begin = place
        if following != f"I-{kind}":
            found.add((kind, begin, place + 1))
    return found


def entity_scores(labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> EntityScores:
    """Of sentences. An entity counts when kind, first and last word are right; what would divide by 0 is 0."""
    pairs = [(entities(ours), entities(theirs)) for ours, theirs in zip(labels, predicted, strict=True)]
    num_right = sum(len(ours & theirs) for ours, theirs in pairs)
    num_labelled = sum(len(ours) for ours, _ in pairs)
    num_predicted = sum(len(theirs) for _, theirs in pairs)
    precision = num_right / num_predicted if num_predicted else 0.0
    recall = num_right / num_labelled if num_labelled else 0.0
    f1 = 2 * precision * recall / (precision + recall) if num_right else 0.0
    return EntityScores(precision, recall, f1)
