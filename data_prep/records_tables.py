"""Documents of tables: parquet files, and the Arrow files in a directory that `datasets.Dataset.save_to_disk` made.

A piece is what such a file is made of: a row group of parquet, a record batch of Arrow. Only the column with the text
is read, some rows at a time. A null is a document without text.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_prep.records import PARQUET, Document, InputError, InputFile, Part, document_of, missing_field, opened

STATE_FILE = "state.json"
"""Lists the data files of a saved dataset, in order."""
_ROWS_AT_ONCE = 256
_BUFFER_BYTES = 1 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Ends every Arrow stream; one cut between two record batches is sound but for it."""


def saved_data_files(directory: Path) -> list[Path] | None:
    """The Arrow files of a saved dataset, in the order of its rows; None for any other directory.

    Raises InputError for a dataset that is damaged, or of a form that `datasets` no longer writes.
    """
    state_file = directory / STATE_FILE
    if not (os.path.isfile(state_file) and os.path.exists(directory / "dataset_info.json")):
        return None
    try:
        state: Any = json.loads(state_file.read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError(f"file names that are not of this directory: {names}")
    except OSError as error:
        raise InputError(f"{state_file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{state_file}: not what Dataset.save_to_disk writes ({type(error).__name__}: {error}); save it again"
        ) from None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            f"{directory}: only some rows of its files are meant, as old versions of datasets saved them; load it with"
            " datasets.load_from_disk and save it again"
        )
    for name in names:
        if not os.path.isfile(directory / name):
            raise InputError(f"{directory / name}: {STATE_FILE} names this file, but it is not there; copy it again")
    return [directory / name for name in names]


def pieces_of(file: InputFile, text_field: str) -> list[int]:
    """The end of each piece in bytes of the file; of a row group about, as if nothing stood between them.

    Raises InputError when the file is damaged or has no column of strings of that name.
    """
    if file.kind == PARQUET:
        with _parquet(file, text_field) as parquet:
            # Not what the columns say they take on disk: pyarrow aborts the process when that part is damaged.
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            if sum(group.num_rows for group in groups) != parquet.metadata.num_rows:
                raise pyarrow.ArrowInvalid("the row groups do not have as many rows as the file")
            filled = list(accumulate(max(1, group.total_byte_size) for group in groups))
            return [file.size_bytes * each // filled[-1] for each in filled]
    with _arrow(file, text_field) as (stream, position):
        ends = [position() for _ in stream]
        if position() != file.size_bytes:
            raise pyarrow.ArrowInvalid(f"the stream ends at byte {position()} of {file.size_bytes}")
        return ends


def table_documents(part: Part, text_field: str) -> Iterator[Document]:
    """The documents of a part, in order. Raises InputError naming file and row."""
    assert part.pieces is not None
    first, end = part.pieces
    if part.file.kind == PARQUET:
        with _parquet(part.file, text_field) as parquet:
            row = sum(parquet.metadata.row_group(number).num_rows for number in range(first))
            yield from _documents(part.file, text_field, row, _row_groups(parquet, first, end, text_field))
    else:
        with _arrow(part.file, text_field) as (stream, _):
            row = number = 0
            for number, batch in enumerate(islice(stream, end), start=1):
                if number > first:
                    yield from _documents(part.file, text_field, row, iter([batch]))
                row += batch.num_rows
            if number < end:
                raise pyarrow.ArrowInvalid(f"{number} record batches, where there were at least {end}")


def _row_groups(
    parquet: pyarrow.parquet.ParquetFile, first: int, end: int, text_field: str
) -> Iterator[pyarrow.RecordBatch]:
    """One group after the other, so that what is read ahead ends with each."""
    for number in range(first, end):
        num_rows = 0
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[number], columns=[text_field], use_threads=False):
            num_rows += batch.num_rows
            yield batch
        if num_rows != parquet.metadata.row_group(number).num_rows:
            raise pyarrow.ArrowInvalid(f"row group {number} has fewer rows than the file says")


def _documents(
    file: InputFile, text_field: str, row: int, batches: Iterator[pyarrow.RecordBatch]
) -> Iterator[Document]:
    """Of batches with the one column, of which `row` is the number of the first row."""
    for batch in batches:
        column = batch.column(batch.schema.get_field_index(text_field))
        try:
            column.validate(full=True)  # also that a damaged file does not lead out of the buffer
        except pyarrow.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
        for number in range(batch.num_rows):
            try:
                document = document_of(column[number].as_py(), text_field)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{file.path}, row {row + number} (from 0): {text_field!r} is not UTF-8: byte"
                    f" 0x{error.object[error.start]:02x} at offset {error.start}; write the table again"
                ) from None
            yield document
        row += batch.num_rows


@contextmanager
def _parquet(file: InputFile, text_field: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    with opened(file), _sound(file, "parquet"), pyarrow.OSFile(str(file.path)) as source:
        parquet = pyarrow.parquet.ParquetFile(
            source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        _check_column(file, parquet.schema_arrow, text_field)
        yield parquet


@contextmanager
def _arrow(file: InputFile, text_field: str) -> Iterator[tuple[Iterator[pyarrow.RecordBatch], Callable[[], int]]]:
    """The record batches, only their text, and where in the file the reading is. Mapped: what is passed over is not
    read."""
    with opened(file) as stream:
        stream.seek(max(0, file.size_bytes - len(_END_OF_STREAM)))
        if stream.read() != _END_OF_STREAM:
            raise InputError(f"{file.path}: the Arrow stream is cut short; copy or save it again")
    with _sound(file, "Arrow"), pyarrow.memory_map(str(file.path)) as source:
        column = _check_column(file, pyarrow.ipc.open_stream(source).schema, text_field)
        source.seek(0)
        options = pyarrow.ipc.IpcReadOptions(included_fields=[column], use_threads=False)
        yield iter(pyarrow.ipc.open_stream(source, options=options)), source.tell


@contextmanager
def _sound(file: InputFile, kind: str) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{file.path}: not a sound {kind} file ({first_line}); copy or write it again") from None


def _check_column(file: InputFile, schema: pyarrow.Schema, text_field: str) -> int:
    """The number of the column with the text."""
    found = schema.get_all_field_indices(text_field)
    if not found:
        raise InputError(f"{file.path}: " + missing_field(text_field, schema.names, "the table has no column"))
    if len(found) > 1:
        raise InputError(f"{file.path}: the table has {len(found)} columns {text_field!r}; leave one")
    kind = schema.field(found[0]).type
    values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    if not any(is_it(values) for is_it in is_text):
        texts = [field.name for field in schema if any(is_it(field.type) for is_it in is_text)]
        advice = f"columns of strings: {', '.join(map(repr, texts))}" if texts else "no column of the table does"
        raise InputError(f"{file.path}: the column {text_field!r} does not hold strings but {kind}; {advice}")
    return int(found[0])
