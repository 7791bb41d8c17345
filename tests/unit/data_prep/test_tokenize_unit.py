"""A unit of work takes bounded memory, and cuts text by the tokenizer that the plan names or not at all."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import tokenize_unit
from data_prep.add_tokens import add_tokens
from data_prep.cleaning import Cleaner, CleaningConfig
from data_prep.encoding import Encode
from data_prep.inputs import Document, Reading, find_inputs, plan_units
from data_prep.passes import TextUnit
from data_prep.tokenize_unit import UnitWorker
from data_prep.workplace import Units
from deberta_scale.data.tokenizer import Tokenizer, TokenizerError
from tests.reading import json_lines, write


@pytest.fixture
def unit(tmp_path: Path) -> TextUnit:
    files = find_inputs([write(tmp_path / "text.jsonl", json_lines("the end", *[""] * 10_000, "the beginning"))])
    [parts] = plan_units(files, Reading(), 10**9)
    return TextUnit(parts, Reading(), CleaningConfig())


@pytest.fixture
def worker(prepared_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UnitWorker:
    """In a process that has loaded no tokenizer yet."""
    monkeypatch.setattr(tokenize_unit, "_tokenizers", {})
    monkeypatch.setattr(tokenize_unit, "_encoders", {})
    directory = shutil.copytree(prepared_shards / "tokenizer", tmp_path / "tokenizer")
    units = Units(tmp_path / "out.partial" / "units")
    units.root.mkdir(parents=True)
    return UnitWorker(units, directory, Tokenizer.load(directory).sha256, 0.001, 1000)


def test_few_empty_documents_are_held_at_once(
    worker: UnitWorker, unit: TextUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    held: list[int] = []
    documents, encoder_of = TextUnit.documents, tokenize_unit.encoder_of

    def counted(unit: TextUnit, cleaner: Cleaner) -> Iterator[Document]:
        nonlocal read
        for document in documents(unit, cleaner):
            read += 1
            yield document

    def watched(tokenizer: Tokenizer) -> Encode:
        encode = encoder_of(tokenizer)
        return lambda texts: held.append(read - sum(held)) or encode(texts)

    monkeypatch.setattr(TextUnit, "documents", counted)
    monkeypatch.setattr(tokenize_unit, "encoder_of", watched)
    worker.do(0, unit)
    assert sum(held) == 10_002 and max(held) < 5000
    assert worker.finished.fragment(0)["empty_documents"] == 10_000


def test_another_tokenizer_in_the_place_of_the_planned_one_is_refused_with_what_works(
    worker: UnitWorker, unit: TextUnit, tmp_path: Path
) -> None:
    add_tokens(worker.tokenizer_dir, ["<drug>"], tmp_path / "grown")
    worker.tokenizer_dir.rename(tmp_path / "old")
    (tmp_path / "grown").rename(worker.tokenizer_dir)
    partial = worker.finished.root.parent
    expected = (
        f"tokenizer: has changed since the start; put the old one back and start again, or remove {partial} first"
    )
    with pytest.raises(TokenizerError, match=expected):
        worker.do(0, unit)
    shutil.rmtree(worker.tokenizer_dir)
    (tmp_path / "old").rename(worker.tokenizer_dir)
    worker.do(0, unit)
    assert worker.finished.is_done(0)
