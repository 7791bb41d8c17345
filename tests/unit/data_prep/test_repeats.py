"""Repeats are looked for over all files and sources, before tokenizing; of each the first in input order stays."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.cleaning import CleaningConfig
from data_prep.deduplication import DeduplicationConfig
from data_prep.inputs import InputError, Reading, find_inputs
from data_prep.near_duplicates import NearDuplicateConfig
from data_prep.preparation import Preparation, Source
from data_prep.records import paragraphs_of
from data_prep.repeats import RepeatsConfig
from data_prep.share import Share
from data_prep.tokenize_corpus import SPLITS, tokenize
from deberta_scale.data.tokenizer import Tokenizer
from tests.launching import ROOT
from tests.reading import json_lines, write
from tests.reading_shards import digests_of, texts_of

EXACT = RepeatsConfig(deduplication=DeduplicationConfig(documents=True, paragraphs=True))
NEAR = RepeatsConfig(deduplication=EXACT.deduplication, near_duplicates=NearDuplicateConfig(threshold=0.8))
ONE = Share(0, 1, "one process")
SMALL: dict[str, Any] = {"shard_tokens": 3_000, "validation_fraction": 0.3}
"""Several units."""


@pytest.fixture
def tokenizer_dir(prepared_shards: Path) -> Path:
    return prepared_shards / "tokenizer"


def long_paragraph(document: str) -> str:
    return next(paragraph for paragraph in paragraphs_of(document) if len(paragraph) > 60)


def nearly(document: str) -> str:
    words = document.split(" ")
    words[len(words) // 2] = "edited"
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus(sample_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """(directory of three files, the documents that should stay of them)."""
    novels = sample_documents
    directory = tmp_path_factory.mktemp("corpus")
    first = [*novels[:10], "Chapter 1\na beginning"]
    second = [
        *novels[10:15],
        novels[3].replace(" ", "  "),  # a duplicate of another file's, but for white space
        nearly(novels[5]),
        f"Chapter 1\n{long_paragraph(novels[7])}\nwhat only this one says",
    ]
    third = [
        novels[11],
        nearly(novels[12]),
        long_paragraph(novels[1]),  # of which nothing is left
        f"the last\n{long_paragraph(nearly(novels[5]) + chr(10) + 'x' * 70)}",
        *novels[15:18],
        novels[16],
    ]
    for name, texts in (("1.jsonl", first), ("2.jsonl", second), ("3.jsonl", third)):
        write(directory / name, json_lines(*texts))
    kept = [*first, *novels[10:15], "Chapter 1\nwhat only this one says", "the last", *novels[15:18]]
    return directory, kept


def tokenize_into(out: Path, tokenizer_dir: Path, *inputs: Path, **options: Any) -> dict[str, Any] | None:
    return tokenize(find_inputs(list(inputs)), Reading(), tokenizer_dir, out, **SMALL | options)


@pytest.fixture
def needs_library() -> None:
    pytest.importorskip("datasketch", reason="the extra `prepare` is not installed")


@pytest.mark.usefixtures("needs_library")
def test_the_first_of_every_kind_of_repeat_stays_and_the_others_are_counted(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path
) -> None:
    directory, kept = corpus
    out = tmp_path / "out"
    result = tokenize_into(out, tokenizer_dir, directory, repeats=NEAR)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    tokenizer = Tokenizer.load(tokenizer_dir)
    expected = [[tokenizer.decode(ids) for ids in tokenizer.encode(paragraphs_of(text))] for text in kept]
    found = {split: texts_of(out, split) for split in SPLITS}
    for split in SPLITS:
        assert found[split] == [document for document in expected if document in found[split]], "in input order"
    assert sum(map(len, found.values())) == len(expected)

    told = json.loads((out / "preparation.json").read_text())["deduplication"]
    assert result is not None and result["deduplication"] == told
    assert told["all"]["documents_in"] == 11 + 8 + 8 and told["all"]["documents_out"] == len(kept)
    dropped = {name: counts["documents_dropped"] for name, counts in told.items() if name != "all"}
    assert dropped == {"duplicate_documents": 3, "near_duplicate_documents": 2, "duplicate_paragraphs": 1}
    assert told["duplicate_paragraphs"]["paragraphs_dropped"] == 3
    for unit in ("documents", "paragraphs", "characters"):
        left = told["all"][f"{unit}_in"] - sum(told[name][f"{unit}_dropped"] for name in dropped)
        assert left == told["all"][f"{unit}_out"]


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("repeats", [EXACT, NEAR], ids=["exact", "near"])
def test_workers_and_shares_change_no_byte(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path, repeats: RepeatsConfig
) -> None:
    directory, _ = corpus
    options: dict[str, Any] = {"repeats": repeats}
    tokenize_into(tmp_path / "one", tokenizer_dir, directory, **options)
    tokenize_into(tmp_path / "two", tokenizer_dir, directory, workers=2, **options)
    shared, units = tmp_path / "shared", tmp_path / "shared.partial" / "units"
    for _ in range(len(repeats.passes) + 1):
        for index in (1, 2, 0):
            tokenize_into(shared, tokenizer_dir, directory, share=Share(index, 3, "--share"), **options)
    done = sorted(path.name for path in units.iterdir())
    assert len(done) > 3 and done == [f"{number:06d}" for number in range(len(done))], "only publishing is left"
    tokenize_into(shared, tokenizer_dir, directory, **options)
    assert digests_of(tmp_path / "one") == digests_of(tmp_path / "two") == digests_of(shared)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "shared", "two"]


def test_a_share_does_not_tokenize_before_all_are_compared(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        share = Share(0, 2, "--share")
        assert tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0], repeats=EXACT, share=share) is None
        assert [path.name for path in tmp_path.iterdir()] == ["out.repeats.partial"]


def test_nothing_is_looked_for_unless_it_is_asked_for(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path
) -> None:
    result = tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0])
    told = json.loads((tmp_path / "out" / "preparation.json").read_text())
    assert result is not None and sum(result[split]["documents"] for split in SPLITS) == 27
    assert "deduplication" not in result.keys() | told.keys() | told["plan"].keys()


def test_omitting_paragraphs_moves_no_document_to_the_other_split(tokenizer_dir: Path, tmp_path: Path) -> None:
    notice = "This very notice stands below each and every one of the documents in the corpus."
    path = write(tmp_path / "a.jsonl", json_lines(*(f"document {n}\n{notice}" for n in range(200))))
    tokenize_into(tmp_path / "with", tokenizer_dir, path)
    paragraphs = RepeatsConfig(deduplication=DeduplicationConfig(paragraphs=True))
    tokenize_into(tmp_path / "without", tokenizer_dir, path, repeats=paragraphs)
    for split in SPLITS:
        before, after = texts_of(tmp_path / "with", split), texts_of(tmp_path / "without", split)
        assert [document[0] for document in before] == [document[0] for document in after] and len(after) > 20
    kept = [document for split in SPLITS for document in texts_of(tmp_path / "without", split) if len(document) > 1]
    assert kept == [["document 0", notice]]


@pytest.mark.parametrize("other", [RepeatsConfig(), RepeatsConfig(deduplication=DeduplicationConfig(documents=True))])
def test_what_another_config_left_is_neither_used_nor_removed(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path, other: RepeatsConfig
) -> None:
    tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0], repeats=EXACT, share=Share(0, 2, "--share"))
    before = digests_of(tmp_path)
    with pytest.raises(ValueError, match=r"out\.repeats\.partial was left by a run .*or remove the directory"):
        tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0], repeats=other)
    assert digests_of(tmp_path) == before


def test_a_result_of_another_config_is_not_taken_for_this_ones(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path
) -> None:
    tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0], repeats=EXACT)
    told = tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0], repeats=EXACT)
    assert told is not None and told["deduplication"]["all"]["documents_in"] == 27
    with pytest.raises(ValueError, match="exists and is not empty"):
        tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0])


def test_without_the_library_nothing_is_begun(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ValueError, match=r"pip install 'deberta-scale\[prepare\]', or leave near_duplicates out"):
        tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0], repeats=NEAR)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_line_leaves_nothing_behind(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path, workers: int
) -> None:
    broken = write(tmp_path / "broken.jsonl", json_lines("a text") + '{"text": "cut')
    with pytest.raises(InputError, match=r"broken\.jsonl, line 2: not valid JSON"):
        tokenize_into(tmp_path / "out", tokenizer_dir, corpus[0], broken, repeats=EXACT, workers=workers)
    assert list(tmp_path.iterdir()) == [broken]


def test_text_that_changes_between_the_passes_is_an_error(tokenizer_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(*(f"document {n}\nand more" for n in range(50))))
    changed, times = path.read_text().replace("t 0\\nand", "t 0, and"), path.stat()
    options: dict[str, Any] = {"repeats": EXACT, "shard_tokens": 100}
    for index in (0, 1):  # the second goes on with its share of the next pass, in which the first document is not
        tokenize_into(tmp_path / "out", tokenizer_dir, path, share=Share(index, 2, "--share"), **options)
    assert path.write_text(changed) == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match=r"a\.jsonl: read a second time, cleaning left other text"):
        tokenize_into(tmp_path / "out", tokenizer_dir, path, **options)


@pytest.fixture
def two_sources(tokenizer_dir: Path, tmp_path: Path, corpus: tuple[Path, list[str]]) -> Any:
    """Makes the preparation of the corpus and, as a source after it, of a file."""

    def make(out: Path, second: Path) -> Preparation:
        sources = [
            Source(find_inputs([path]), Reading(), out / name, CleaningConfig())
            for name, path in (("novels", corpus[0]), ("others", second))
        ]
        return Preparation(sources, out, tokenizer_dir, repeats=EXACT, share=ONE, workers=1, **SMALL)

    return make


def prepare(preparation: Preparation, num_sources: int = 2) -> list[Any]:
    assert preparation.find_repeats() is None
    return [preparation.tokenize(source) for source in preparation.sources[:num_sources]]


def test_sources_are_compared_and_what_a_kill_between_them_left_is_used(
    two_sources: Any, sample_documents: list[str], tmp_path: Path
) -> None:
    texts = [*(f"a new text, {n}" for n in range(40)), sample_documents[4], "a new text, 5"]
    second = write(tmp_path / "second.jsonl", json_lines(*texts))
    whole = two_sources(tmp_path / "whole", second)
    result = prepare(whole)
    whole.close()
    assert result[1]["deduplication"]["duplicate_documents"]["documents_dropped"] == 2
    prepare(two_sources(tmp_path / "killed", second), num_sources=1)
    rest = two_sources(tmp_path / "killed", second)
    prepare(rest)
    rest.close()
    assert digests_of(tmp_path / "whole") == digests_of(tmp_path / "killed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "second.jsonl", "whole"]


def test_a_source_of_which_nothing_is_left_is_named(
    two_sources: Any, sample_documents: list[str], tmp_path: Path
) -> None:
    second = write(tmp_path / "second.jsonl", json_lines(*sample_documents[:3]))
    with pytest.raises(InputError, match=r"second\.jsonl: all of it repeats what earlier sources hold; leave"):
        prepare(two_sources(tmp_path / "out", second))


@pytest.mark.usefixtures("needs_library")
def test_a_description_asks_for_it_and_the_summary_and_the_report_tell_of_it(
    corpus: tuple[Path, list[str]], tokenizer_dir: Path, tmp_path: Path
) -> None:
    description = write(
        tmp_path / "data.yaml",
        f"tokenizer: {tokenizer_dir}\nvalidation_fraction: 0.3\nsources: {{novels: {{paths: [{corpus[0]}]}}}}\n"
        "deduplication: {documents: true, paragraphs: true}\nnear_duplicates: {threshold: 0.8}\n",
    )

    def run(tool: str, *words: Path | str) -> str:
        command = [sys.executable, str(ROOT / "data_prep" / f"{tool}.py"), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    lines = run("tokenize_corpus", "--data", description, "--out", tmp_path / "out").splitlines()
    assert lines[0] == "looking for duplicates in 3 file(s) with 1 worker(s)"
    for name, told in {
        "duplicate_documents": "3 documents, ",
        "near_duplicate_documents": "2 documents, ",
        "duplicate_paragraphs": "1 documents, 3 paragraphs, ",
    }.items():
        assert any(line.startswith(f"left out by {name}: {told}") for line in lines)
    run("inspect_shards", tmp_path / "out" / "novels", "--report", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Left out by deduplication" in page and "near_duplicate_documents" in page
