"""Exact duplicates over the whole corpus, of documents and of paragraphs, found with bounded memory by digests on disk.

    pass 1   every unit writes digests of its documents and paragraphs into its directory, in sorted runs: UnitDigests
    merge    the digests are shared out in ranges; each range of all runs is read, sorted, compared: merge_range
    pass 2   every unit reads which of its documents and paragraphs repeat an earlier one, and omits them: Unrepeated

Of equal ones the first in input order stays, that is the one with the smallest (unit, number); numbers count the
documents, or the paragraphs of all documents, that a unit's cleaning left. So the result depends neither on who did
which unit or range, nor on when, nor on how the input is cut into units or the digests into ranges.

A digest is 128 bits of blake2b over the text with each run of white space taken for one space. Among 10**9 different
texts the chance that any two share one is 1.5e-21 (n**2 / 2**129); with 64 bits it would be 2.7 %.
"""

import bisect
import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator

from data_prep.cleaning import UNITS
from data_prep.records import Document
from deberta_scale.config_data import PositiveInt, Section
from deberta_scale.durable import written_durably

DIGEST_BYTES = 16
DOCUMENTS, PARAGRAPHS = "documents", "paragraphs"
RUN_RECORDS = 1_000_000
"""Digests that a unit holds in memory before it writes a run: about 100 MB with what sorting needs, for each kind."""
MERGE_BYTES = 2**28
_BYTES_PER_MERGED_RECORD = 100
"""With what sorting and comparing need: 66 measured of few repeats, 87 of nothing but repeats."""

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u8")])
_REPEAT = np.dtype([("unit", "<u4"), ("number", "<u8")])
_MEMBER = np.dtype([("begins", "?"), ("unit", "<u4"), ("number", "<u8")])


class DeduplicationConfig(Section):
    documents: bool = False
    """Omit documents that have the same paragraphs as an earlier one."""
    paragraphs: bool = False
    """Omit paragraphs that an earlier document, or the same one, has had."""
    min_paragraph_characters: PositiveInt = 60
    """Shorter paragraphs are never omitted: headings and answers repeat in honest text."""

    @model_validator(mode="after")
    def _consistent(self) -> "DeduplicationConfig":
        if not self.paragraphs and "min_paragraph_characters" in self.model_fields_set:
            raise ValueError(
                f"min_paragraph_characters {self.min_paragraph_characters} has no effect without paragraphs: true; add"
                " that, or leave it out"
            )
        return self


class RunWriter:
    """Digests with their numbers, written in sorted runs: `NAME-000000.run.npy`, ... Publishing the directory around
    them is the caller's part."""

    def __init__(self, directory: Path, name: str, *, keep_repeats: bool, run_records: int = RUN_RECORDS) -> None:
        """`keep_repeats`: whether a run holds each digest as often as it came. If not, what comes again within a run is
        known to be a repeat, and goes to `NAME-000000.repeats.npy`, so that no digest is in more records than there are
        runs, however often it came."""
        self.directory, self.name = directory, name
        self.num_runs = 0
        self._keep_repeats, self._run_records = keep_repeats, run_records
        self._digests, self._numbers = bytearray(), array("Q")

    def add(self, digest: bytes, number: int) -> None:
        """Numbers must not fall."""
        self._digests += digest
        self._numbers.append(number)
        if len(self._numbers) >= self._run_records:
            self._write()

    def finish(self) -> None:
        if self._numbers:
            self._write()

    def _write(self) -> None:
        words = np.frombuffer(bytes(self._digests), dtype="<u8").reshape(-1, 2)
        order = np.lexsort((words[:, 1], words[:, 0]))  # stable: equal digests stay in the order of their numbers
        records = np.empty(len(order), dtype=_RECORD)
        records["high"], records["low"] = words[order, 0], words[order, 1]
        records["number"] = np.frombuffer(self._numbers, dtype=np.uint64)[order]
        if not self._keep_repeats:
            begins = _begins_group(records)
            np.save(self.directory / f"{self._run_name}.repeats.npy", np.sort(records["number"][~begins]))
            records = records[begins]
        np.save(self.directory / f"{self._run_name}.run.npy", records)
        self.num_runs += 1
        self._digests, self._numbers = bytearray(), array("Q")

    @property
    def _run_name(self) -> str:
        return f"{self.name}-{self.num_runs:06d}"


def digest_of_text(*paragraphs: str) -> bytes:
    """Of a paragraph, or of a document's paragraphs."""
    return _digest("\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


class UnitDigests:
    """Writes the digests of a unit's `DOCUMENTS`, of their `PARAGRAPHS`, or of both.

    Both in one pass omit the same as one after the other, since a document that repeats another has no paragraph that
    was not there before. A near-duplicate may have some: where those are omitted, digest the paragraphs in a pass of
    their own, with `is_kept` false for them, lest a paragraph be omitted for the sake of one that is itself.
    """

    def __init__(
        self, directory: Path, config: DeduplicationConfig, kinds: Sequence[str], *, run_records: int = RUN_RECORDS
    ) -> None:
        self._shortest = config.min_paragraph_characters
        writers = {kind: RunWriter(directory, kind, keep_repeats=False, run_records=run_records) for kind in kinds}
        self._writers, self._documents, self._paragraphs = writers, writers.get(DOCUMENTS), writers.get(PARAGRAPHS)
        self._num_documents = self._num_paragraphs = 0

    def add(self, document: Document, *, is_kept: bool = True) -> None:
        """The next document that cleaning left. Of one that is not kept, or has no text, only the number is used up."""
        if is_kept and document and self._documents is not None:
            self._documents.add(digest_of_text(*document), self._num_documents)
        if is_kept and self._paragraphs is not None:
            for number, paragraph in enumerate(document, self._num_paragraphs):
                # Equal paragraphs must be equally long: the spaces that make no difference do not count.
                if len(paragraph) >= self._shortest and len(text := " ".join(paragraph.split())) >= self._shortest:
                    self._paragraphs.add(_digest(text), number)
        self._num_documents += 1
        self._num_paragraphs += len(document)

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.finish()


def ranges_needed(units: Sequence[Path], name: str, memory_bytes: int = MERGE_BYTES) -> int:
    """In how many ranges to merge, so that each takes about `memory_bytes` at most. `units`: the directories of all
    units, in order. The part that may exceed it is one record for each run, as when all units hold the same text."""
    file_bytes = sum(path.stat().st_size for unit in units for path in _runs(unit, name))
    return max(1, -(-file_bytes * _BYTES_PER_MERGED_RECORD // (_RECORD.itemsize * memory_bytes)))


def merge_range(
    units: Sequence[Path],
    name: str,
    number: int,
    num_ranges: int,
    merged: Path,
    found_in: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Path:
    """Compare the digests of one range, and write what is found into the directory `merged`; returns the file.
    `found_in` is `repeats_among` or `groups_among`.

    Ranges can be merged in any order, by any number of processes; one that is done is not done again. Reads each run
    at one place, a logarithm of its length apart, and has one file open at a time.
    """
    path = merged / f"{name}-{number:05d}-of-{num_ranges:05d}.merged.npy"
    if path.exists():
        return path
    ends = [which * 2**64 // num_ranges for which in (number, number + 1)]
    parts, unit_numbers, lengths = [np.empty(0, dtype=_RECORD)], [0], [0]
    for unit, directory in enumerate(units):
        for run in _runs(directory, name):
            records = np.load(run, mmap_mode="r")
            high = records["high"]
            start, end = (bisect.bisect_left(high, value) if value < 2**64 else len(high) for value in ends)
            if start < end:
                parts.append(np.array(records[start:end]))
                unit_numbers.append(unit)
                lengths.append(end - start)
    records = np.concatenate(parts)
    del parts
    order = np.lexsort((records["low"], records["high"]))  # stable: equal digests stay in input order
    records = records[order]
    of_unit = np.repeat(np.array(unit_numbers, dtype=np.uint32), lengths)[order]
    del order
    with written_durably(path) as file:
        np.save(file, found_in(records, of_unit))
    return path


def repeats_among(records: np.ndarray, of_unit: np.ndarray) -> np.ndarray:
    """Of sorted records and their units: those that repeat an earlier one, as `unit` and `number`, sorted by these."""
    repeats = ~_begins_group(records)
    found = np.empty(np.count_nonzero(repeats), dtype=_REPEAT)
    found["unit"], found["number"] = of_unit[repeats], records["number"][repeats]
    return found[np.lexsort((found["number"], found["unit"]))]


def groups_among(records: np.ndarray, of_unit: np.ndarray) -> np.ndarray:
    """Of sorted records and their units: all that share their digest, as `unit` and `number`, group by group in input
    order; `begins` marks the first of each group."""
    begins = _begins_group(records)
    shared = ~begins
    shared[:-1] |= ~begins[1:]
    found = np.empty(np.count_nonzero(shared), dtype=_MEMBER)
    found["begins"], found["unit"], found["number"] = begins[shared], of_unit[shared], records["number"][shared]
    return found


def merged_ranges(merged: Path, name: str) -> list[Any]:
    """What `merge_range` wrote, a memory-mapped array for each range.

    Raises ValueError when a range is missing, or `merged` holds ranges of different counts.
    """
    paths = sorted(merged.glob(f"{name}-*.merged.npy"))
    counts = {int(path.name.split(".")[0].rpartition("-of-")[2]) for path in paths}
    if len(counts) != 1 or len(paths) != max(counts):
        raise ValueError(
            f"{merged}: {len(paths)} of {'/'.join(map(str, sorted(counts))) or 'no'} ranges of {name} are there; merge"
            " all ranges of one count, and remove the others"
        )
    return [np.load(path, mmap_mode="r") for path in paths]


def repeats_in(unit: int, directory: Path, ranges: Sequence[Any], name: str) -> np.ndarray:
    """The numbers of a unit's documents, or paragraphs, that repeat an earlier one, rising: 8 bytes each.

    `directory` is the unit's, with its runs; `ranges` are the `merged_ranges` of `repeats_among`.
    """
    found = [np.load(path) for path in sorted(directory.glob(f"{name}-*.repeats.npy"))]
    for of_range in ranges:
        of_unit = of_range["unit"]
        start, end = bisect.bisect_left(of_unit, unit), bisect.bisect_right(of_unit, unit)
        found.append(np.array(of_range["number"][start:end]))
    return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *found]))


class Unrepeated:
    """Omits a unit's repeated documents and paragraphs, and counts.

    `counts` has `documents_in`, `paragraphs_in`, `characters_in`, the same three `_out`, and `<why>.documents_dropped`,
    `<why>.paragraphs_dropped` (those of dropped documents too) and `<why>.characters_dropped` of the reasons
    `duplicate_documents`, `near_duplicate_documents` and `duplicate_paragraphs`; a document all of whose paragraphs are
    repeated is dropped. Characters are code points, line feeds not counted. In less dropped is out.
    """

    def __init__(
        self,
        documents: np.ndarray | None = None,
        near_documents: np.ndarray | None = None,
        paragraphs: np.ndarray | None = None,
    ) -> None:
        """Numbers as `repeats_in` gives them; None for what is not looked for."""
        given = {
            "duplicate_documents": documents,
            "near_duplicate_documents": near_documents,
            "duplicate_paragraphs": paragraphs,
        }
        self.counts = {f"{unit}_{end}": 0 for end in ("in", "out") for unit in UNITS}
        self.counts |= {
            f"{why}.{unit}_dropped": 0 for why, numbers in given.items() if numbers is not None for unit in UNITS
        }
        self._num_documents = self._num_paragraphs = 0
        self._documents = {why: _Rising(given[why]) for why in list(given)[:2] if given[why] is not None}
        self._paragraphs = _Rising(paragraphs)

    def take(self, document: Document) -> Document | None:
        """What is left of the next document that cleaning left; None when nothing is. A document that came without text
        is returned as it is and not counted."""
        if not document:
            self._num_documents += 1
            return document
        self._count("{}_in", document)
        first_paragraph = self._num_paragraphs
        reasons = [why for why, numbers in self._documents.items() if numbers.has(self._num_documents)]
        self._num_documents += 1
        self._num_paragraphs += len(document)
        if reasons:
            self._count(f"{reasons[0]}.{{}}_dropped", document)
            return None
        kept: Document = []
        dropped: Document = []
        for number, paragraph in enumerate(document, first_paragraph):
            (dropped if self._paragraphs.has(number) else kept).append(paragraph)
        if dropped:
            self._count("duplicate_paragraphs.{}_dropped", dropped, documents=not kept)
        if not kept:
            return None
        self._count("{}_out", kept)
        return kept if dropped else document

    def _count(self, key: str, paragraphs: Document, documents: int = 1) -> None:
        for unit, amount in zip(UNITS, (documents, len(paragraphs), sum(map(len, paragraphs))), strict=True):
            self.counts[key.format(unit)] += amount


class _Rising:
    """Rising numbers that are asked for in rising order."""

    def __init__(self, numbers: np.ndarray | None) -> None:
        self._numbers: Iterator[int] = iter(()) if numbers is None else map(int, numbers)
        self._next = next(self._numbers, None)

    def has(self, number: int) -> bool:
        while self._next is not None and self._next < number:
            self._next = next(self._numbers, None)
        return self._next == number


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def _begins_group(records: np.ndarray) -> np.ndarray:
    """Which of sorted records have another digest than the one before."""
    begins = np.ones(len(records), dtype=bool)
    begins[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
    return begins


def _runs(directory: Path, name: str) -> list[Path]:
    return sorted(directory.glob(f"{name}-*.run.npy"))
