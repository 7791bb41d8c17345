"""Of equal documents and paragraphs the first stays, however the corpus is cut and whoever compares what."""

import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.deduplication import (
    DOCUMENTS,
    PARAGRAPHS,
    DeduplicationConfig,
    RunWriter,
    UnitDigests,
    Unrepeated,
    digest_of_text,
    merge_range,
    merged_ranges,
    ranges_needed,
    repeats_among,
    repeats_in,
)
from data_prep.records import Document

CONFIG = DeduplicationConfig(documents=True, paragraphs=True, min_paragraph_characters=4)
corpora = st.lists(
    st.lists(st.sampled_from(["a", "b  b", "b b", "c  cc", "c cc", "dddd", "eeee"]), max_size=4), max_size=24
)


@pytest.fixture(scope="module", autouse=True)
def quick_disk() -> Iterator[None]:
    """Thousands of small files are forced to disk in these tests, which takes ten times as long as all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deberta_scale.durable.sync", lambda path: None)
        yield


def cut(corpus: list[Document], places: list[int]) -> list[list[Document]]:
    ends = sorted(place % (len(corpus) + 1) for place in places)
    return [corpus[start:end] for start, end in zip([0, *ends], [*ends, len(corpus)], strict=True)]


def merge(units: list[Path], name: str, num_ranges: int, merged: Path) -> None:
    numbers = list(range(num_ranges))
    random.Random(num_ranges).shuffle(numbers)
    for number in numbers:
        merge_range(units, name, number, num_ranges, merged, repeats_among)


def deduplicated(
    directory: Path,
    units: list[list[Document]],
    num_ranges: int = 1,
    run_records: int = 1000,
    near: list[set[int]] | None = None,
) -> tuple[list[Document], list[dict[str, int]]]:
    """As `tokenize_corpus` does it: one pass for both kinds, or two where near-duplicates are omitted."""
    places = [directory / f"unit-{number}" for number in range(len(units))]
    passes = [[DOCUMENTS, PARAGRAPHS]] if near is None else [[DOCUMENTS], [PARAGRAPHS]]
    near_numbers = [
        None if near is None else np.array(sorted(near[unit]), dtype=np.uint64) for unit in range(len(units))
    ]
    numbers: dict[str, list[np.ndarray]] = {}
    for kinds in passes:
        for unit in reversed(range(len(units))):
            places[unit].mkdir(exist_ok=True)
            digests = UnitDigests(places[unit], CONFIG, kinds, run_records=run_records)
            earlier = Unrepeated(numbers[DOCUMENTS][unit], near_numbers[unit]) if numbers else None
            for document in units[unit]:
                digests.add(document, is_kept=earlier is None or earlier.take(document) is not None)
            digests.finish()
        for kind in kinds:
            merge(places, kind, num_ranges, directory)
            ranges = merged_ranges(directory, kind)
            numbers[kind] = [repeats_in(unit, place, ranges, kind) for unit, place in enumerate(places)]
    kept, counts = [], []
    for unit, documents in enumerate(units):
        filters = Unrepeated(numbers[DOCUMENTS][unit], near_numbers[unit], numbers[PARAGRAPHS][unit])
        kept += [left for document in documents if (left := filters.take(document)) is not None]
        counts.append(filters.counts)
    return kept, counts


def naive(corpus: list[Document], near: set[int] | None = None) -> list[Document]:
    seen_documents: set[tuple[str, ...]] = set()
    seen_paragraphs: set[str] = set()
    kept = []
    for number, document in enumerate(corpus):
        if not document:
            kept.append(document)
            continue
        normalised = tuple(" ".join(paragraph.split()) for paragraph in document)
        if normalised in seen_documents or number in (near or ()):
            seen_documents.add(normalised)
            continue
        seen_documents.add(normalised)
        left = []
        for paragraph, text in zip(document, normalised, strict=True):
            if len(text) < CONFIG.min_paragraph_characters or text not in seen_paragraphs:
                left.append(paragraph)
                seen_paragraphs.add(text)
        if left:
            kept.append(left)
    return kept


@settings(deadline=None, max_examples=60)
@given(corpora, st.lists(st.integers(0, 24), max_size=5), st.integers(1, 5), st.integers(1, 7))
def test_any_cut_of_the_corpus_gives_what_a_set_would(
    corpus: list[Document], places: list[int], num_ranges: int, run_records: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        kept, counts = deduplicated(Path(directory), cut(corpus, places), num_ranges, run_records)
    assert kept == naive(corpus)
    for unit in ("documents", "paragraphs", "characters"):
        dropped = sum(n for of_unit in counts for key, n in of_unit.items() if key.endswith(f".{unit}_dropped"))
        assert sum(of_unit[f"{unit}_in"] for of_unit in counts) - dropped == sum(c[f"{unit}_out"] for c in counts)


@settings(deadline=None, max_examples=30)
@given(corpora, st.lists(st.integers(0, 24), max_size=3), st.sets(st.integers(0, 23)))
def test_no_paragraph_is_omitted_for_the_sake_of_an_omitted_document(
    corpus: list[Document], places: list[int], near: set[int]
) -> None:
    units = cut(corpus, places)
    starts = np.cumsum([0, *map(len, units)])
    of_units = [
        {n - int(start) for n in near if 0 <= n - start < len(unit)} for start, unit in zip(starts, units, strict=False)
    ]
    with tempfile.TemporaryDirectory() as directory:
        kept, _ = deduplicated(Path(directory), units, near=of_units)
    assert kept == naive(corpus, near)


def test_counts_say_why(tmp_path: Path) -> None:
    corpus = [["first", "other"], ["first", "other"], ["other"], ["other", "third"]]
    kept, counts = deduplicated(tmp_path, [corpus])
    assert kept == [["first", "other"], ["third"]]
    assert {key: count for key, count in counts[0].items() if count} == {
        "documents_in": 4,
        "paragraphs_in": 7,
        "characters_in": 10 + 10 + 5 + 10,
        "documents_out": 2,
        "paragraphs_out": 3,
        "characters_out": 15,
        "duplicate_documents.documents_dropped": 1,
        "duplicate_documents.paragraphs_dropped": 2,
        "duplicate_documents.characters_dropped": 10,
        "duplicate_paragraphs.documents_dropped": 1,
        "duplicate_paragraphs.paragraphs_dropped": 2,
        "duplicate_paragraphs.characters_dropped": 10,
    }


def test_white_space_makes_no_difference_but_paragraphs_do() -> None:
    assert digest_of_text("a  b\t c") == digest_of_text("a b c")
    assert digest_of_text("a b", "c") != digest_of_text("a", "b c")


def write_unit(directory: Path, digests: list[bytes], keep_repeats: bool = False, run_records: int = 10**6) -> Path:
    directory.mkdir()
    writer = RunWriter(directory, DOCUMENTS, keep_repeats=keep_repeats, run_records=run_records)
    for number, digest in enumerate(digests):
        writer.add(digest, number)
    writer.finish()
    return directory


def test_merging_keeps_to_the_memory_it_was_given(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    digests = generator.integers(0, 256, (30_000, 16), dtype=np.uint8)
    digests[generator.integers(0, len(digests), 10_000)] = digests[:10_000]
    all_digests = [row.tobytes() for row in digests]
    units = [write_unit(tmp_path / f"{n}", all_digests[n * 7_500 : (n + 1) * 7_500]) for n in range(4)]
    memory_bytes = 500_000
    num_ranges = ranges_needed(units, DOCUMENTS, memory_bytes)
    assert num_ranges >= 5
    merged = tmp_path / "merged"
    merged.mkdir()
    tracemalloc.start()
    for number in range(num_ranges):
        merge_range(units, DOCUMENTS, number, num_ranges, merged, repeats_among)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < memory_bytes
    ranges = merged_ranges(merged, DOCUMENTS)
    found = sum(len(repeats_in(unit, place, ranges, DOCUMENTS)) for unit, place in enumerate(units))
    assert found == len(all_digests) - len(set(all_digests))


def test_a_unit_keeps_no_more_digests_in_memory_than_a_run(tmp_path: Path) -> None:
    digests = [bytes([n % 251]) * 8 + n.to_bytes(8, "little") for n in range(20_000)]
    tracemalloc.start()
    write_unit(tmp_path / "unit", digests, run_records=1_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list((tmp_path / "unit").glob("*.run.npy"))) == 20
    assert peak_bytes < 200_000


def test_a_digest_that_comes_often_is_written_once_a_run(tmp_path: Path) -> None:
    unit = write_unit(tmp_path / "unit", [b"\0" * 16] * 1000, run_records=300)
    assert [len(np.load(path)) for path in sorted(unit.glob("*.run.npy"))] == [1, 1, 1, 1]
    merged = tmp_path / "merged"
    merged.mkdir()
    merge([unit], DOCUMENTS, 3, merged)
    assert repeats_in(0, unit, merged_ranges(merged, DOCUMENTS), DOCUMENTS).tolist() == list(range(1, 1000))


def test_digests_at_the_ends_of_the_ranges_are_compared_once(tmp_path: Path) -> None:
    ends = [value.to_bytes(8, "little") + b"\0" * 8 for value in (0, 2**62 - 1, 2**62, 2**63, 2**64 - 1)]
    ends.append(ends[3][:8] + b"\1" * 8)  # equal in the first half, and no repeat
    units = [write_unit(tmp_path / f"{n}", ends) for n in range(2)]
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(units, DOCUMENTS, 4, merged)
    ranges = merged_ranges(merged, DOCUMENTS)
    assert repeats_in(0, units[0], ranges, DOCUMENTS).tolist() == []
    assert repeats_in(1, units[1], ranges, DOCUMENTS).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_killed_merge_goes_on_and_leaves_the_same_files(tmp_path: Path) -> None:
    units = [write_unit(tmp_path / f"{n}", [digest_of_text(str(i % 40)) for i in range(100)]) for n in range(2)]
    merged, again = tmp_path / "merged", tmp_path / "again"
    for directory in (merged, again):
        directory.mkdir()
    merge(units, DOCUMENTS, 3, merged)
    merge_range(units, DOCUMENTS, 1, 3, again, repeats_among)
    (again / f"{DOCUMENTS}-00000-of-00003.merged.npy.other-1.tmp").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="1 of 3 ranges of documents are there; merge all"):
        merged_ranges(again, DOCUMENTS)
    done = (again / f"{DOCUMENTS}-00001-of-00003.merged.npy").stat().st_mtime_ns
    merge(units, DOCUMENTS, 3, again)
    assert (again / f"{DOCUMENTS}-00001-of-00003.merged.npy").stat().st_mtime_ns == done
    for path in merged.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_ranges_of_two_merges_are_not_mixed(tmp_path: Path) -> None:
    unit = write_unit(tmp_path / "unit", [])
    merge([unit], DOCUMENTS, 1, tmp_path)
    merge([unit], DOCUMENTS, 2, tmp_path)
    with pytest.raises(ValueError, match="3 of 1/2 ranges"):
        merged_ranges(tmp_path, DOCUMENTS)
    with pytest.raises(ValueError, match="0 of no ranges of paragraphs"):
        merged_ranges(tmp_path, PARAGRAPHS)
