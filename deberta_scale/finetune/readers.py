"""What every reader of labelled data is made of: a record of a file, the labels it may have, the example it becomes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

NO_ANSWER = (0, 0)
"""The label of a question that its context does not answer."""


class ReadError(ValueError):
    """Labelled data that cannot be used. The message names file and place."""


@dataclass(frozen=True)
class Example:
    """One thing to predict."""

    texts: tuple[str, ...]
    """[CLS] text [SEP], or [CLS] text [SEP] text [SEP]; the words of a sentence; question and context; empty where
    there are choices."""
    label: str | float | tuple[str, ...] | tuple[int, int] | None = None
    """A label's name; a number (regression); a name for each word; first character of the answer in the context and the
    one behind its last, or NO_ANSWER. None in splits without labels."""
    id: str = ""
    """In the benchmark's own numbers, as submissions want it; the number of the example where the file has none."""
    choices: tuple[tuple[str, ...], ...] = ()
    """The texts of each choice; the label is the name of one of them."""
    group: str | None = None
    """Examples that belong together and follow each other: answers to a question, sentences of a document."""
    answers: tuple[str, ...] = ()
    """Every text that is right (SQuAD; ReCoRD)."""
    candidate: str | None = None
    """The text that this example proposes as the answer of its group (ReCoRD)."""


class LeftOut(NamedTuple):
    """A record, or part of one, that no example was made of, and why; what is left out is counted and told."""

    place: str
    reason: str


@dataclass(frozen=True)
class Record:
    """What a file says at one place: a row, a line, a paragraph."""

    path: Path
    place: str
    """For messages: `line 3`."""
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}, {self.place}"

    def get(self, column: str) -> Any:
        """Raises ReadError naming the columns that are there."""
        if column not in self.values:
            raise ReadError(
                f"{self.where}: there is no column {column!r}; there are {', '.join(map(repr, self.values))}"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """Raises ReadError as `get`, and for anything but text."""
        value = self.get(column)
        if not isinstance(value, str):
            raise ReadError(f"{self.where}: {column!r} is {_in_short(value)}; it must be text")
        return value

    def integer(self, column: str) -> int:
        """Raises ReadError as `get`, and for anything but a whole number."""
        value = self.get(column)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ReadError(f"{self.where}: {column!r} is {_in_short(value)}; it must be a whole number")
        return value

    def list_of(self, column: str, kind: type) -> list[Any]:
        """Raises ReadError as `get`, and for anything but a list of `kind`."""
        value = self.get(column)
        if not isinstance(value, list) or not all(isinstance(element, kind) for element in value):
            raise ReadError(f"{self.where}: {column!r} is {_in_short(value)}; it must be a list of {kind.__name__}")
        return value

    def inside(self, column: str) -> "Record":
        """The object that stands in a column, as a record. Raises ReadError as `get`, and for anything else."""
        return self.part(column, self.get(column))

    def parts(self, column: str) -> "list[Record]":
        """The objects of the list that stands in a column, as records. Raises ReadError as `inside`."""
        return [self.part(f"{column}[{n}]", value) for n, value in enumerate(self.list_of(column, object))]

    def part(self, name: str, value: Any) -> "Record":
        if not isinstance(value, dict):
            raise ReadError(f"{self.where}: {name!r} is {_in_short(value)}; it must be an object")
        return Record(self.path, f"{self.place}, {name}", value)


@dataclass(frozen=True)
class Labels:
    """What a label may be."""

    names: tuple[str, ...] = ()
    """In the order of the model's outputs. Without any, labels are numbers (regression), or places (spans)."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings, by the name they stand for: of the same data as the hub's `datasets` have it."""
    required: bool = True
    """False for the test splits of benchmarks, whose labels are kept back (missing, empty or -1)."""

    def of(self, record: Record, column: str) -> str | float | None:
        """The label that a record has in a column. Raises ReadError naming the place, the label, and those allowed."""
        if column not in record.values and not self.required:
            return None
        value = _spelled(record.get(column))
        if not self.required and value in ("", "-1", "null"):
            return None
        return self.checked(value, record) if self.names else _number(value, column, record)

    def checked(self, value: str, record: Record) -> str:
        """The name of a label. Raises ReadError when it is none."""
        name = self.aliases.get(value, value)
        if name not in self.names:
            raise ReadError(f"{record.where}: the label {value!r} is none of {', '.join(map(repr, self.names))}")
        return name

    def check_same(self, found: Sequence[str], source: str) -> None:
        """Compare with the labels of a checkpoint, which `source` names, in the order of its outputs.

        Upper and lower case, and names such as LABEL_0 that say nothing, are not compared. Raises ReadError when the
        number, the names or their order differ.
        """
        ours = max(1, len(self.names))
        if len(found) != ours:
            raise ReadError(
                f"{source} has {len(found)} labels, {_listed(found)}; the task has {ours}{_are(self.names)}"
            )
        if not self.names or all(name == f"LABEL_{number}" for number, name in enumerate(found)):
            return
        theirs = [self.aliases.get(name, name).casefold() for name in found]
        if theirs != [name.casefold() for name in self.names]:
            same = sorted(theirs) == sorted(name.casefold() for name in self.names)
            advice = "the same in another order: its outputs would be read as other labels" if same else "other labels"
            raise ReadError(
                f"{source} has the labels {_listed(found)}, the task has {_listed(self.names)}: {advice};"
                " start from a checkpoint without this head, or name the labels as it does"
            )


class Form(Protocol):
    """How a record becomes examples."""

    def __call__(self, record: Record, labels: Labels) -> Iterator[Example | LeftOut]:
        """Raises ReadError for what is missing or wrong in the record."""


def columns(text: str, text_pair: str | None = None, label: str = "label", identifier: str = "idx") -> Form:
    """One text, or a pair of them, in named columns. The identifier's column need not be there."""

    def form(record: Record, labels: Labels) -> Iterator[Example]:
        texts = tuple(record.text(column) for column in (text, text_pair) if column is not None)
        yield Example(texts, labels.of(record, label), id=_spelled(record.values.get(identifier, "")))

    return form


def _spelled(value: Any) -> str:
    """As it is written in JSON, text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: str, column: str, record: Record) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if number - number != 0:
        raise ReadError(f"{record.where}: {column!r} is {value!r}; it must be a number")
    return number


def _in_short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _are(names: Sequence[str]) -> str:
    return f", {_listed(names)}" if names else " (a number)"
