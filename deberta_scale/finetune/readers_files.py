"""Containers of labelled data → records: TSV, CSV, JSON lines, CoNLL columns, SQuAD documents, RACE directories, and
folders that `Dataset.save_to_disk` wrote. Plain files may be gzipped (`.gz`)."""

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from deberta_scale.finetune.readers import LeftOut, ReadError, Record

COLA_COLUMNS = ("source", "label", "mark", "sentence")
DOCUMENT_START = "-DOCSTART-"


@contextmanager
def open_text(path: Path, newline: str = "\n") -> Iterator[IO[str]]:
    """A file's text. Lines end at line feeds alone: texts of JSON hold other signs at which Python would end them.

    Raises ReadError for a file that cannot be read, is no UTF-8 or is damaged.
    """
    try:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise ReadError(f"{path}: not UTF-8 text ({error.reason}); convert it first") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ReadError(f"{path}: damaged ({error}); copy or download it again") from None
    except OSError as error:
        raise ReadError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and lines without their ends."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removesuffix("\n").removesuffix("\r")


def tsv_records_with_gaps(path: Path, header: Sequence[str] = ()) -> Iterator[Record | LeftOut]:
    """Rows of fields between tabs; quotes are text. The first row names the columns where no `header` is given.

    Rows with another number of fields than the header has are left out.
    """
    lines = ((number, line) for number, line in _lines(path) if line)
    if not header:
        header = next(lines, (0, ""))[1].split("\t")
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) == len(header):
            yield Record(path, f"line {number}", dict(zip(header, fields, strict=True)))
        else:
            yield LeftOut(
                f"{path}, line {number}",
                f"number of fields between tabs is not that of the columns ({len(header)}: {', '.join(header)})",
            )


def tsv_records(path: Path, header: Sequence[str] = ()) -> Iterator[Record]:
    """As `tsv_records_with_gaps`; raises ReadError where that leaves out."""
    for record in tsv_records_with_gaps(path, header):
        if isinstance(record, LeftOut):
            raise ReadError(f"{record.place}: {record.reason}")
        yield record


def cola_records(path: Path) -> Iterator[Record]:
    """CoLA's rows have no header but in the test split."""
    _, first = next(_lines(path), (0, ""))
    return tsv_records(path, () if first == "index\tsentence" else COLA_COLUMNS)


def csv_records(path: Path) -> Iterator[Record]:
    """Rows with quoting, under a header."""
    with open_text(path, newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise ReadError(f"{path}, line {rows.line_num}: not as many fields as the header has")
                yield Record(path, f"line {rows.line_num}", row)
        except csv.Error as error:
            raise ReadError(f"{path}, line {rows.line_num}: not CSV ({error})") from None


def json_line_records(path: Path) -> Iterator[Record]:
    """One JSON object a line."""
    for number, line in _lines(path):
        if line:
            yield _object(path, f"line {number}", line)


def paragraph_records(path: Path) -> Iterator[Record]:
    """The paragraphs of a document in SQuAD's form."""
    with open_text(path) as file:
        document = _object(path, "the document", file.read())
    for article in document.parts("data"):
        yield from article.parts("paragraphs")


def passage_records(path: Path) -> Iterator[Record]:
    """The passages of one split of RACE: a file each, in a directory for each level."""
    for file in sorted(path.glob("*/*.txt")):
        with open_text(file) as opened:
            yield _object(file, "the passage", opened.read())


def sentence_records(path: Path) -> Iterator[Record]:
    """Sentences in CoNLL's form: a word a line, its tag in the last column, blank lines between sentences.

    The values are `tokens`, `ner_tags` and `document`, the number of -DOCSTART- lines before.
    """
    document = 0
    numbered = ((number, line.split()) for number, line in _lines(path))
    for is_sentence, lines in itertools.groupby(numbered, lambda line: bool(line[1]) and line[1][0] != DOCUMENT_START):
        rows = list(lines)
        if not is_sentence:
            document += sum(bool(fields) for _, fields in rows)
            continue
        for number, fields in rows:
            if len(fields) < 2:
                raise ReadError(f"{path}, line {number}: one column; expected a word and, in the last column, its tag")
        words, tags = [fields[0] for _, fields in rows], [fields[-1] for _, fields in rows]
        values = {"tokens": words, "ner_tags": tags, "document": document}
        yield Record(path, f"lines {rows[0][0]} to {rows[-1][0]}", values)


ENDINGS = {".tsv": tsv_records, ".csv": csv_records, ".jsonl": json_line_records}
"""Of files whose name tells what they are."""


def records_by_ending(path: Path) -> Iterator[Record]:
    """Raises ReadError for a name with another ending than those of ENDINGS, `.gz` aside."""
    ending = Path(path.name.removesuffix(".gz")).suffix
    if ending not in ENDINGS:
        raise ReadError(f"{path}: unknown kind of file; names must end in {', '.join(ENDINGS)}, or these and .gz")
    return ENDINGS[ending](path)


def is_saved_dataset(folder: Path) -> bool:
    """Did `DatasetDict.save_to_disk`, or `Dataset.save_to_disk` for each split, write this folder?"""
    return (folder / "dataset_dict.json").exists() or any(folder.glob("*/state.json"))


def saved_records(folder: Path, split: str) -> Iterator[Record]:
    """Rows of a split that `datasets` saved; class labels by their names. Raises ReadError when it cannot be opened."""
    import datasets  # takes seconds

    path = folder / split
    if not path.is_dir():
        there = sorted(inner.parent.name for inner in folder.glob("*/state.json"))
        raise ReadError(f"{folder}: there is no split {split!r}; there are {', '.join(map(repr, there))}")
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:
        raise ReadError(f"{path}: not a folder that Dataset.save_to_disk wrote, or damaged ({error})") from None
    names = {column: _class_names(feature) for column, feature in rows.features.items()}
    for number, row in enumerate(rows):
        yield Record(path, f"row {number}", {column: _named(value, names[column]) for column, value in row.items()})


def _class_names(feature: Any) -> list[str] | None:
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(value: Any, names: list[str] | None) -> Any:
    """Numbers of classes by their names; -1, which means a label that is kept back, stays."""
    if isinstance(value, list) and names:
        return [_named(element, names) for element in value]
    return names[value] if names and value is not None and value >= 0 else value


def _object(path: Path, place: str, text: str) -> Record:
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReadError(f"{path}, {place}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ReadError(f"{path}, {place}: expected a JSON object, found {type(values).__name__}")
    return Record(path, place, values)
