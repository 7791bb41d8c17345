"""Which files there are to read, cut into units of work that do not depend on who does it; and their documents.

What the records modules know of files and documents is given on from here.
"""

import argparse
import glob
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.records import HUB_PREFIX, TABLE_KINDS, Document, InputError, InputFile, Part, Reading
from data_prep.records_hub import find_stream, hub_documents, num_shards_of
from data_prep.records_tables import pieces_of, saved_data_files, table_documents
from data_prep.records_text import text_documents

__all__ = [
    "Document",
    "InputError",
    "InputFile",
    "Part",
    "Reading",
    "add_input_arguments",
    "all_documents",
    "documents",
    "find_inputs",
    "in_short",
    "plan_units",
    "reading_of",
    "refuse_beside_data",
]

_NO_LIMIT = 2**62
"""Of bytes in a unit: nothing is cut."""
_KEYS_OF_A_SOURCE = {"input": "paths", "document_boundary": "document_boundary", "text_field": "text_field"}
"""By the name of the option without its dashes."""
_COMPRESSIONS = (".gz", ".zst")
_ENDINGS = (*(kind + compression for kind in (".txt", ".jsonl") for compression in ("", *_COMPRESSIONS)), ".parquet")


def add_input_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that say what to read, the same for every tool that reads text."""
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=required,
        metavar="PATH",
        help="files (.txt, .jsonl, each also .gz or .zst; .parquet), directories, of which all such files are taken,"
        " directories made by Dataset.save_to_disk, patterns like 'text/**/*.jsonl', or hub:NAME[:CONFIG]@SPLIT",
    )
    parser.add_argument(
        "--document-boundary",
        choices=["blank-line", "file"],
        help=f"what separates documents in plain text (default: {Reading.document_boundary})",
    )
    parser.add_argument(
        "--text-field",
        help=f"key of the text in JSON lines, or column in tables: strings (default: {Reading.text_field})",
    )


def reading_of(arguments: argparse.Namespace) -> Reading:
    given = {name: getattr(arguments, name) for name in ("document_boundary", "text_field")}
    return Reading(**{name: value for name, value in given.items() if value is not None})


def refuse_beside_data(arguments: argparse.Namespace, more_keys: Mapping[str, str]) -> None:
    """Raises ValueError naming the options that a data description leaves without effect, each with the key that stands
    there for it; `more_keys`: keys of options that not every tool has."""
    keys = {name: f"sources.NAME.{key}" for name, key in _KEYS_OF_A_SOURCE.items()} | more_keys
    given = [
        f"--{name.replace('_', '-')} (in the file: {key})"
        for name, key in keys.items()
        if getattr(arguments, name) is not None
    ]
    if given:
        raise ValueError(f"--data {arguments.data} says what to read and how; leave out {', '.join(given)}")


def find_inputs(paths: list[Path]) -> list[InputFile]:
    """The files that `paths` name, in order; those of a directory or pattern sorted by name.

    A path that exists is no pattern. Links are followed. Raises InputError for a path that does not exist, a pattern
    that nothing matches, a file that is of an unknown kind, cannot be read or is named twice, a compressed file or
    table without a byte in it, a directory without any text file, or a stream that cannot be opened.
    """
    files: list[InputFile] = []
    for path in paths:
        given = str(path)
        if "\0" in given:
            raise InputError(f"{given!r}: no path has a zero byte in it")
        if given.startswith(HUB_PREFIX):
            files.append(find_stream(given))
        elif glob.has_magic(given) and not os.path.lexists(path):
            files += _matches(given)
        else:
            files += _found_at(path, path.name)
    seen: set[Path] = set()
    for file in files:
        if file.place in seen:
            raise InputError(f"{file.path}: given twice; its documents would count double")
        seen.add(file.place)
    return files


def in_short(files: list[InputFile]) -> str:
    """The files, for a message: the first, and how many more there are."""
    return str(files[0].path) + (f" and {len(files) - 1:,} more" if len(files) > 1 else "")


def plan_units(files: list[InputFile], reading: Reading, unit_bytes: int) -> list[list[Part]]:
    """Cut the input into units of work of about `unit_bytes` on disk, whatever the number of workers.

    A compressed file, a file that is one document, a row group, a record batch or a shard of a stream is never cut.
    Raises InputError for tables and streams that cannot be opened or lack the text.
    """
    units: list[list[Part]] = [[]]
    filled_bytes = 0
    for part in (part for file in files for part in _parts_of(file, reading, unit_bytes)):
        # Nobody knows how large a shard of a stream is: each is a unit.
        if units[-1] and (filled_bytes + part.end - part.start > unit_bytes or part.file.kind == HUB_PREFIX):
            units.append([])
            filled_bytes = 0
        _append(units[-1], part)
        filled_bytes += unit_bytes if part.file.kind == HUB_PREFIX else part.end - part.start
    return [unit for unit in units if unit]


def documents(part: Part, reading: Reading) -> Iterator[Document]:
    """The documents of a part, in order. Raises InputError naming file and line."""
    if part.file.kind == HUB_PREFIX:
        return hub_documents(part, reading.text_field)
    if part.file.kind in TABLE_KINDS:
        return table_documents(part, reading.text_field)
    return text_documents(part, reading)


def all_documents(files: list[InputFile], reading: Reading) -> Iterator[Document]:
    """The documents of files, in order. Raises InputError naming file and line."""
    for unit in plan_units(files, reading, _NO_LIMIT):
        for part in unit:
            yield from documents(part, reading)


def _parts_of(file: InputFile, reading: Reading, unit_bytes: int) -> Iterator[Part]:
    if file.kind == HUB_PREFIX or file.kind in TABLE_KINDS:
        is_stream = file.kind == HUB_PREFIX
        ends = list(range(1, num_shards_of(file) + 1)) if is_stream else pieces_of(file, reading.text_field)
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            yield Part(file, start, end, pieces=(number, number + 1))
        return
    size = file.size_bytes
    whole = file.is_compressed or (file.kind == ".txt" and reading.document_boundary == "file")
    step = max(1, size if whole else unit_bytes)
    for start in range(0, size, step):
        yield Part(file, start, min(start + step, size))


def _append(unit: list[Part], part: Part) -> None:
    """Pieces of a file that follow each other become one part, so that the file is opened once."""
    last = unit[-1] if unit else None
    if last and last.pieces and part.pieces and last.file == part.file:
        unit[-1] = Part(part.file, last.start, part.end, pieces=(last.pieces[0], part.pieces[1]))
    else:
        unit.append(part)


def _found_at(path: Path, name: str) -> list[InputFile]:
    """The files that a path given by the user, or matched by a pattern, means."""
    if stat.S_ISDIR(_stat(path).st_mode):
        inside = list(_inside(path, Path(), ()))
        if not inside:
            raise InputError(f"{path}: no file in this directory ends in {', '.join(_ENDINGS)}")
        return inside
    if not path.name.endswith(_ENDINGS):
        advice = " (its directory may be an input, if Dataset.save_to_disk made it)" if path.suffix == ".arrow" else ""
        raise InputError(f"{path}: unknown kind of file; names must end in {', '.join(_ENDINGS)}{advice}")
    return [_input_file(path, name)]


def _inside(directory: Path, inner: Path, above: tuple[str, ...]) -> Iterator[InputFile]:
    """The files of a directory given, from its subdirectory `inner` on; `above`: where that is, links resolved."""
    here = directory / inner
    real = os.path.realpath(here)
    if real in above:
        raise InputError(f"{here}: a link that leads back to {real}, so that there is no end; remove it")
    if (saved := saved_data_files(here)) is not None:
        yield from (_input_file(path, (inner / path.name).as_posix()) for path in saved)
        return
    try:
        with os.scandir(here) as found:
            entries = sorted((entry.name, entry.is_dir()) for entry in found)
    except OSError as error:
        raise InputError(f"{here}: cannot be read ({error.strerror})") from None
    for name, is_directory in entries:
        if is_directory:
            yield from _inside(directory, inner / name, (*above, real))
        elif name.endswith(_ENDINGS):
            yield _input_file(here / name, (inner / name).as_posix())


def _matches(pattern: str) -> list[InputFile]:
    """What a shell would put for the pattern, `**` being any number of directories; names begin where the pattern
    does."""
    matched = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not matched:
        raise InputError(f"{pattern}: nothing matches this pattern, seen from {Path.cwd()}")
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    files: dict[Path, InputFile] = {}
    for path in matched:
        inner = path.relative_to(fixed)
        found = _found_at(path, inner.as_posix())
        if path.is_dir():
            found = [_input_file(each.path, (inner / each.name).as_posix()) for each in found]
        files |= {file.path: file for file in found}  # `**` matches directories and the files in them
    return list(files.values())


def _input_file(path: Path, name: str) -> InputFile:
    found = _stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a regular file, so that it can be read only once; write its content into one")
    if not found.st_size and path.suffix in (*_COMPRESSIONS, *TABLE_KINDS):
        raise InputError(f"{path}: empty, not even a {path.suffix[1:]} file; copy or download the file again")
    return InputFile(path, name, found.st_size, found.st_mtime_ns)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        missing = "no such file or directory"
        if path.is_symlink():
            missing = f"a link to {os.readlink(path)}, which is not there; mend or remove the link"
        raise InputError(f"{path}: {missing}") from None
    except OSError as error:  # no permission, or links in a circle
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
