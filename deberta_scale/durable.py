"""Files that are whole after a crash, or not there: written aside, forced to disk, renamed."""

import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def sync(path: Path) -> None:
    """Force a file, or the list of names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_durably(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; when the block ends well it is at `path`, which has its old or its new content after a
    crash, never half of it. Several processes may do so at once, with the same content."""
    own = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with own.open("wb") as file:
            yield file
        sync(own)
        own.rename(path)
    except BaseException:
        own.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_durably(path: Path, text: str) -> None:
    """`written_durably`, of a small file of text."""
    with written_durably(path) as file:
        file.write(text.encode())


def write_described(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file, part by part, and force it to disk. Returns `bytes` and `blake2b` of the parts: those of the
    file only if it holds what was meant for it, which reading it back for its digest would not tell."""
    digest, size = _new_digest(), 0
    with path.open("wb") as file:
        for part in parts:
            digest.update(part)
            size += file.write(part)
    sync(path)
    return {"bytes": size, "blake2b": digest.hexdigest()}


def digest_of(path: Path) -> str:
    """128-bit blake2b of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _new_digest).hexdigest()


def digest_of_bytes(content: bytes) -> str:
    """The same of bytes in memory."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def refuse_used(directory: Path) -> None:
    """Raise ValueError when `directory` exists and is anything but an empty directory."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not empty; give another directory to write, or remove it first")


@contextmanager
def published_directory(directory: Path) -> Iterator[Path]:
    """Give `DIRECTORY.partial` to write into; when the block ends well it is synced and renamed, else removed.

    Raises ValueError as `refuse_used`. A `.partial` that a killed run left is removed.
    """
    refuse_used(directory)
    directory = directory.resolve()
    partial = directory.with_name(directory.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        partial.rename(directory)
        sync(directory.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
