"""The labels of a model's head ↔ those of a task."""

from collections.abc import Sequence
from typing import NamedTuple

from deberta_scale.convert.finetuned import label_words
from deberta_scale.finetune.readers import Labels


class LabelOrder(NamedTuple):
    """Which output of a head answers which label."""

    outputs: tuple[int, ...]
    """For each label of the task, in its order, the number of the head's output."""
    notes: tuple[str, ...]


def label_order(labels: Labels, found: Sequence[str], source: str) -> LabelOrder:
    """Match the names that a head has for its outputs with a task's labels, by name, in whatever order.

    Upper and lower case are not told apart, and the task's other spellings count. Names such as LABEL_0 say nothing:
    they are taken in the order of the task, and a note says so. Raises ValueError naming both sets where they differ.
    """
    if len(found) == len(labels.names) and all(name.upper() == f"LABEL_{n}" for n, name in enumerate(found)):
        return LabelOrder(
            tuple(range(len(found))),
            (f"its labels have no names; they are taken in the task's order: {', '.join(labels.names)}",),
        )
    spellings = {name.casefold(): name for name in labels.names}
    spellings |= {alias.casefold(): name for alias, name in labels.aliases.items()}
    meant = [spellings.get(name.casefold()) for name in found]
    if len(meant) != len(labels.names) or set(meant) != set(labels.names):
        raise ValueError(
            f"{source} has the labels {_listed(found)}, the task {_listed(label_words(labels))}; give a model that"
            " was fine-tuned for this task, or the model's own task"
        )
    return LabelOrder(tuple(meant.index(name) for name in labels.names), ())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
