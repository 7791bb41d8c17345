"""Documents of plain text and JSON lines, compressed or not. Records end at a line feed only: U+2028 is text."""

import json
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard

from data_prep.records import Document, InputError, InputFile, Part, Reading, document_of, missing_field, opened

_BLOCK_BYTES = 1 << 20
_COMPRESSED_BLOCK_BYTES = 1 << 12
"""Small, since a block of nothing but repetition grows tens of thousands of times."""
_MAX_LINE_BYTES = 1 << 30
_BYTE_ORDER_MARK = "\ufeff"
_OTHER_KINDS = {
    b"\x1f\x8b\x08": ("gzip", "name it .gz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "name it .zst"),
    b"PAR1\x15": ("parquet", "name it .parquet"),
    b"\xff\xff\xff\xff": ("Arrow", "give the directory that Dataset.save_to_disk made"),
    b"\xff\xfe": ("UTF-16", "convert it, for instance with iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", "convert it, for instance with iconv -f UTF-16 -t UTF-8"),
}
"""First bytes, none of which begin a UTF-8 text, of what is found under a wrong name."""


def text_documents(part: Part, reading: Reading) -> Iterator[Document]:
    """The documents of a part of plain text or JSON lines, in order. Raises InputError naming file and line."""
    if part.file.kind == ".jsonl":
        yield from _json_documents(part, reading.text_field)
    elif reading.document_boundary == "file":
        lines = (_paragraph(part.file, offset, line) for offset, line in _lines(part))
        yield [paragraph for paragraph in lines if paragraph]
    else:
        yield from _blocks_of_lines(part)


def _json_documents(part: Part, text_field: str) -> Iterator[Document]:
    for offset, line in _lines(part):
        if part.start <= offset and not line.isspace() and line:
            if not part.file.is_compressed and offset >= part.end:
                return
            yield _document_of_record(part.file, offset, line, text_field)


def _blocks_of_lines(part: Part) -> Iterator[Document]:
    """What stands between blank lines. The line before `part.start` is read too: it may be the blank one."""
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


def _document_of_record(file: InputFile, offset: int, line: bytes, text_field: str) -> Document:
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
        raise _error_at(file, offset, missing_field(text_field, record, "the record has no key"))
    try:
        return document_of(record[text_field], text_field)
    except ValueError as error:
        raise _error_at(file, offset, str(error)) from None


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
    offset = _line_start(part.file, part.start - 1) if part.start else 0
    rest: list[bytes] = []  # of a line longer than a block
    rest_bytes = 0
    for block in _blocks(part.file, offset):
        first, *others = block.split(b"\n")
        rest.append(first)
        rest_bytes += len(first)
        for following in others:
            line = b"".join(rest)
            yield offset, line
            offset += len(line) + 1
            rest, rest_bytes = [following], len(following)
        if rest_bytes > _MAX_LINE_BYTES:
            raise _error_at(
                part.file,
                offset,
                f"longer than {_MAX_LINE_BYTES:,} bytes; is this text? End its lines, or cut its documents",
            )
    if last := b"".join(rest):
        yield offset, last


def _line_start(file: InputFile, position: int) -> int:
    """The offset of the first byte of the line that holds byte `position`; a line feed belongs to the line it ends."""
    with opened(file) as stream:
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
    at_once = _COMPRESSED_BLOCK_BYTES if file.is_compressed else _BLOCK_BYTES
    with opened(file) as stream:
        stream.seek(offset)
        raw = iter(lambda: stream.read(at_once), b"")
        is_first = offset == 0
        for block in raw if not file.is_compressed else _decompressed(file, raw):
            if is_first and block:
                _refuse_other_kinds(file, block)
                is_first = False
            yield block


def _refuse_other_kinds(file: InputFile, beginning: bytes) -> None:
    """Say what a file is, rather than that it is no text; or that it would pass for a text and is none."""
    what = "its decompressed content" if file.is_compressed else "this"
    for signature, (kind, advice) in _OTHER_KINDS.items():
        if beginning.startswith(signature):
            raise InputError(f"{file.path}: {what} is not text but {kind}; {advice}")
    if 4 * beginning[:4096].count(0) >= max(4, len(beginning[:4096])):
        raise InputError(
            f"{file.path}: {what} is full of zero bytes, as UTF-16 or a damaged file is; convert it, for instance with"
            " iconv -f UTF-16LE -t UTF-8, or copy it again"
        )
    if file.kind == ".txt" and b"\n" not in beginning and b"\r" in beginning.strip():
        raise InputError(
            f"{file.path}: its lines end in carriage returns without line feeds; convert it, for instance with"
            r" tr '\r' '\n'"
        )


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
