"""Text files in, documents out: plain text and JSON lines, each also compressed, whole or by byte range.

A document is the list of its paragraphs (lines without surrounding white space, never empty); a document without
text is an empty list, so that callers can count it. Records end at a line feed only: U+2028 and its like are text.
"""

import argparse
import difflib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

Document = list[str]
_BLOCK_BYTES = 1 << 20
_ENDINGS = tuple(kind + compression for kind in (".txt", ".jsonl") for compression in ("", ".gz", ".zst"))
_BYTE_ORDER_MARK = "\ufeff"


class InputError(ValueError):
    """Input that cannot be read as text. The message names the file and, where there is one, the line."""


@dataclass(frozen=True)
class InputFile:
    path: Path
    name: str
    """Relative to the given path, for manifests that mean the same on every machine."""

    @property
    def kind(self) -> str:
        """`.txt` or `.jsonl`. By the end of the name: to Path, a file called `.jsonl` has no suffix."""
        name = self.path.name.removesuffix(self.path.suffix) if self.is_compressed else self.path.name
        return ".jsonl" if name.endswith(".jsonl") else ".txt"

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix in (".gz", ".zst")


@dataclass(frozen=True)
class Reading:
    """How files are cut into documents."""

    document_boundary: str = "blank-line"
    """For plain text: `blank-line`, or `file` for one document a file."""
    text_field: str = "text"
    """For JSON lines: the key that holds the text."""


@dataclass(frozen=True)
class Part:
    """The documents of a file that begin in the bytes [start, end)."""

    file: InputFile
    start: int
    end: int


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what to read, the same for every tool that reads text."""
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="PATH",
        help="files (.txt, .jsonl, each also .gz or .zst) or directories, of which all such files are taken",
    )
    parser.add_argument(
        "--document-boundary",
        choices=["blank-line", "file"],
        default="blank-line",
        help="what separates documents in plain text (default: %(default)s)",
    )
    parser.add_argument(
        "--text-field", default="text", help="key of the text in JSON lines, a string (default: %(default)s)"
    )


def reading_of(arguments: argparse.Namespace) -> Reading:
    return Reading(arguments.document_boundary, arguments.text_field)


def find_inputs(paths: list[Path]) -> list[InputFile]:
    """The files that `paths` name, in order; those of a directory sorted by name.

    Raises InputError for a path that does not exist, a file of an unknown kind, a file named twice, a compressed file
    without a byte in it, or a directory without any text file.
    """
    files: list[InputFile] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or directory")
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(_ENDINGS))
            if not inside:
                raise InputError(f"{path}: no file in this directory ends in {', '.join(_ENDINGS)}")
            files += [InputFile(p, p.relative_to(path).as_posix()) for p in inside]
        elif path.name.endswith(_ENDINGS):
            files.append(InputFile(path, path.name))
        else:
            raise InputError(f"{path}: unknown kind of file; names must end in {', '.join(_ENDINGS)}")
    seen: set[Path] = set()
    for file in files:
        if file.path.resolve() in seen:
            raise InputError(f"{file.path}: given twice; its documents would count double")
        seen.add(file.path.resolve())
        if file.is_compressed and not file.path.stat().st_size:
            raise InputError(f"{file.path}: empty, not even a compressed text; copy or download the file again")
    return files


def in_short(files: list[InputFile]) -> str:
    """The files, for a message: the first, and how many more there are."""
    return str(files[0].path) + (f" and {len(files) - 1:,} more" if len(files) > 1 else "")


def plan_units(files: list[InputFile], reading: Reading, unit_bytes: int) -> list[list[Part]]:
    """Cut the input into units of work of about `unit_bytes` on disk, whatever the number of workers.

    A compressed file, or a file that is one document, is never cut.
    """
    parts: list[Part] = []
    for file in files:
        size = file.path.stat().st_size
        whole = file.is_compressed or (file.kind == ".txt" and reading.document_boundary == "file")
        step = max(1, size if whole else unit_bytes)
        parts += [Part(file, start, min(start + step, size)) for start in range(0, size, step)]
    units: list[list[Part]] = [[]]
    filled_bytes = 0
    for part in parts:
        if filled_bytes + part.end - part.start > unit_bytes and units[-1]:
            units.append([])
            filled_bytes = 0
        units[-1].append(part)
        filled_bytes += part.end - part.start
    return [unit for unit in units if unit]


def documents(part: Part, reading: Reading) -> Iterator[Document]:
    """The documents of a part, in order. Raises InputError naming file and line."""
    if part.file.kind == ".jsonl":
        yield from _json_documents(part, reading.text_field)
    elif reading.document_boundary == "file":
        lines = (_paragraph(part.file, offset, line) for offset, line in _lines(part))
        yield [paragraph for paragraph in lines if paragraph]
    else:
        yield from _text_documents(part)


def _json_documents(part: Part, text_field: str) -> Iterator[Document]:
    for offset, line in _lines(part):
        if part.start <= offset and not line.isspace() and line:
            if not part.file.is_compressed and offset >= part.end:
                return
            text = _text_of_record(part.file, offset, line, text_field)
            yield [paragraph for paragraph in map(str.strip, text.split("\n")) if paragraph]


def _text_documents(part: Part) -> Iterator[Document]:
    """Blocks of lines between blank lines. The line before `part.start` is read too: it may be the blank one."""
    previous_is_blank = part.start == 0
    paragraphs: Document = []
    for offset, line in _lines(part):
        if offset >= part.start:
            paragraph = _paragraph(part.file, offset, line)
        else:  # of another part, which reports what is wrong with it
            paragraph = _without_mark(offset, line.decode(errors="replace"))
        is_blank = not paragraph.strip()
        if is_blank and paragraphs:
            yield paragraphs
            paragraphs = []
        if not paragraphs and not part.file.is_compressed and offset >= part.end:
            return
        begins = not is_blank and previous_is_blank and offset >= part.start
        if begins or (paragraphs and not is_blank):
            paragraphs.append(paragraph)
        previous_is_blank = is_blank
    if paragraphs:
        yield paragraphs


def _text_of_record(file: InputFile, offset: int, line: bytes, text_field: str) -> str:
    content = _decode(file, offset, line)
    try:
        record: Any = json.loads(content)
    except json.JSONDecodeError as error:
        raise _error_at(file, offset, f"not valid JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # a number of thousands of digits
        raise _error_at(file, offset, f"not usable JSON: {error}") from None
    except RecursionError:
        raise _error_at(file, offset, "not usable JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise _error_at(file, offset, f"expected a JSON object with the key {text_field!r}")
    if text_field not in record:
        nearest = difflib.get_close_matches(text_field, record, n=1)
        keys = ", ".join(map(repr, record)) or "none"
        advice = f"did you mean --text-field {nearest[0]}?" if nearest else f"it has {keys}"
        raise _error_at(file, offset, f"the record has no key {text_field!r}; {advice}")
    text = record[text_field]
    if not isinstance(text, str):
        raise _error_at(file, offset, f"{text_field!r} is not a string but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _error_at(file, offset, f"{text_field!r} holds half a surrogate pair: {error.reason}") from None
    return text


def _paragraph(file: InputFile, offset: int, line: bytes) -> str:
    return _decode(file, offset, line).strip()


def _decode(file: InputFile, offset: int, line: bytes) -> str:
    try:
        return _without_mark(offset, line.decode())
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{line[error.start]:02x} at offset {offset + error.start} of the text"
        raise _error_at(file, offset, f"{message}; convert the file, for instance with iconv") from None


def _without_mark(offset: int, line: str) -> str:
    return line if offset else line.removeprefix(_BYTE_ORDER_MARK)


def _error_at(file: InputFile, offset: int, message: str) -> InputError:
    """Find the line number only now: in a byte range it is not known while reading."""
    number, position = 1, 0
    for block in _blocks(file, 0):
        number += block[: max(0, offset - position)].count(b"\n")
        position += len(block)
        if position >= offset:
            break
    return InputError(f"{file.path}, line {number}: {message}")


def _lines(part: Part) -> Iterator[tuple[int, bytes]]:
    """Each line with the offset of its first byte, from the line that holds byte `start - 1`, if there is one."""
    offset = _line_start(part.file.path, part.start - 1) if part.start else 0
    rest: list[bytes] = []  # of a line longer than a block
    for block in _blocks(part.file, offset):
        first, *others = block.split(b"\n")
        rest.append(first)
        for following in others:
            line = b"".join(rest)
            yield offset, line
            offset += len(line) + 1
            rest = [following]
    if last := b"".join(rest):
        yield offset, last


def _line_start(path: Path, position: int) -> int:
    """The offset of the first byte of the line that holds byte `position`; a line feed belongs to the line it ends."""
    with path.open("rb") as stream:
        end = position
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            stream.seek(start)
            found = stream.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _blocks(file: InputFile, offset: int) -> Iterator[bytes]:
    """The text of a file in blocks, decompressed; `offset` is where to begin in one that is not compressed."""
    try:
        with file.path.open("rb") as stream:
            stream.seek(offset)
            raw = iter(lambda: stream.read(_BLOCK_BYTES), b"")
            yield from raw if not file.is_compressed else _decompressed(file, raw)
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read ({error.strerror})") from None


def _decompressed(file: InputFile, raw: Iterator[bytes]) -> Iterator[bytes]:
    """Both formats allow several members one after the other; the last must be complete."""
    kind = "gzip" if file.path.suffix == ".gz" else "zstd"

    def new_member() -> Any:
        if kind == "gzip":
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()

    member, untouched = new_member(), True
    try:
        for block in raw:
            while block:
                yield member.decompress(block)
                untouched, block = False, b""
                if member.eof:
                    block, member, untouched = member.unused_data, new_member(), True
    except (zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{file.path}: not a sound {kind} file ({error})") from None
    if not untouched:
        raise InputError(f"{file.path}: the {kind} stream is cut short; copy or download the file again")
