"""Inputs for tests, written as their names say, and read through to the end."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.inputs import Document, InputError, Reading, documents, find_inputs, plan_units

NO_LIMIT = 2**40


def write(path: Path, text: str | bytes) -> Path:
    """Write a file, compressed as its name says, each member with its check sum."""
    content = text.encode() if isinstance(text, str) else text
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    elif path.suffix == ".zst":
        content = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    path.write_bytes(content)
    return path


def json_lines(*texts: str | None) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def write_parquet(path: Path, texts: Sequence[str | None], group_rows: int = NO_LIMIT) -> Path:
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()), "number": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, path, row_group_size=group_rows, write_page_checksum=True)
    return path


def write_saved_dataset(directory: Path, texts: Sequence[str | None], batch_rows: int = NO_LIMIT) -> Path:
    """A directory as Dataset.save_to_disk makes it, but record batches of any size; returns its only Arrow file."""
    directory.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"number": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})
    path = directory / "data-00000-of-00001.arrow"
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=batch_rows)
    (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": path.name}]}))
    (directory / "dataset_info.json").write_text("{}")
    return path


def read(*paths: Path, reading: Reading | None = None, unit_bytes: int = NO_LIMIT) -> list[Document]:
    reading = reading or Reading()
    units = plan_units(find_inputs(list(paths)), reading, unit_bytes)
    return [document for unit in units for part in unit for document in documents(part, reading)]


def message_of(*paths: Path, reading: Reading | None = None, unit_bytes: int = NO_LIMIT) -> str:
    """Of the InputError that reading ends with: one line that begins with the file."""
    with pytest.raises(InputError) as caught:
        read(*paths, reading=reading, unit_bytes=unit_bytes)
    message = str(caught.value)
    assert "\n" not in message
    return message
