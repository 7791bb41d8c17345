"""What text is read from and what comes out: files, parts of them, documents. records_text, records_tables and
records_hub read the kinds of files there are.

A document is the list of its paragraphs (lines without surrounding white space, never empty); a document without
text is an empty list, so that callers can count it.
"""

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

Document = list[str]
HUB_PREFIX = "hub:"
PARQUET, ARROW = TABLE_KINDS = (".parquet", ".arrow")


class InputError(ValueError):
    """Input that cannot be read as text. The message names the file and, where there is one, the line or row."""


@dataclass(frozen=True)
class InputFile:
    path: Path
    """Of a stream: its name, `hub:NAME:CONFIG@SPLIT`."""
    name: str
    """Relative to the given path, for manifests that mean the same on every machine."""
    size_bytes: int
    """When it was found: a file of another size later is an error. 0 for a stream, of which it is not known."""
    modified_ns: int = 0
    revision: str | None = None
    """Of a stream: the commit, or a digest of which files it is made of."""

    @property
    def kind(self) -> str:
        """`.txt`, `.jsonl`, `.parquet`, `.arrow` or `hub:`. By the end of the name: to Path, a file called `.jsonl` has
        no suffix."""
        if self.revision is not None:
            return HUB_PREFIX
        name = self.path.name.removesuffix(self.path.suffix) if self.is_compressed else self.path.name
        return next((kind for kind in (".jsonl", *TABLE_KINDS) if name.endswith(kind)), ".txt")

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix in (".gz", ".zst") and self.revision is None

    @property
    def place(self) -> Path:
        """By which two names of one file are told to be the same: links resolved; of a stream its name."""
        return self.path.resolve() if self.revision is None else self.path

    def identity(self) -> dict[str, Any]:
        """By which a plan knows the file again, for JSON."""
        known: dict[str, Any] = {"name": self.name, "bytes": self.size_bytes, "modified_ns": self.modified_ns}
        return known if self.revision is None else known | {"revision": self.revision}


@dataclass(frozen=True)
class Reading:
    """How files are cut into documents."""

    document_boundary: str = "blank-line"
    """For plain text: `blank-line`, or `file` for one document a file."""
    text_field: str = "text"
    """For all but plain text: the key or column that holds the text."""


@dataclass(frozen=True)
class Part:
    """The documents of a text file that begin in the bytes [start, end); or pieces of another file."""

    file: InputFile
    start: int
    end: int
    """Also of pieces: the bytes that they take on disk, laid end to end. Streams do not say, and count pieces here."""
    pieces: tuple[int, int] | None = None
    """Row groups of a parquet file, record batches of an Arrow file, shards of a stream: [first, last + 1)."""

    def origin(self) -> dict[str, Any]:
        """Where the documents are from, for a manifest."""
        told: dict[str, Any] = {"input": self.file.name, "bytes": [self.start, self.end]}
        return told if self.pieces is None else told | {"pieces": list(self.pieces)}


@contextmanager
def opened(file: InputFile) -> Iterator[BinaryIO]:
    """The bytes of a file, not decompressed. Raises InputError for one that cannot be read, inside the block too, or
    that is not what was found."""
    try:
        with file.path.open("rb") as stream:
            now_bytes = os.fstat(stream.fileno()).st_size
            if now_bytes != file.size_bytes:
                raise InputError(
                    f"{file.path}: has changed since it was found, from {file.size_bytes:,} to {now_bytes:,} bytes;"
                    " start again when nothing writes it any more"
                )
            yield stream
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read ({error.strerror or error})") from None


def paragraphs_of(text: str) -> Document:
    """Only a line feed parts them: U+2028 and its like are text."""
    return [paragraph for paragraph in map(str.strip, text.split("\n")) if paragraph]


def missing_field(text_field: str, fields: Iterable[str], complaint: str) -> str:
    """What to say where the field is not: the complaint, and which field may be meant."""
    fields = list(fields)
    nearest = difflib.get_close_matches(text_field, fields, n=1)
    advice = f"did you mean the text field {nearest[0]!r}?" if nearest else f"it has {', '.join(map(repr, fields))}"
    return f"{complaint} {text_field!r}; {advice if fields else 'it has none'}"


def document_of(value: Any, text_field: str) -> Document:
    """The document in a field; a null is one without text. Raises ValueError saying what is wrong with the value."""
    if value is None:
        return []
    if not isinstance(value, str):
        raise ValueError(f"{text_field!r} is not a string but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text_field!r} holds half a surrogate pair: {error.reason}") from None
    return paragraphs_of(value)
