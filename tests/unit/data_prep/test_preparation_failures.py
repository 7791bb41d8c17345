"""What a failed preparation leaves behind: nothing that no later run could use, and all that one can."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.add_tokens import add_tokens
from data_prep.cleaning import CleaningConfig, load_language, source_digest
from data_prep.deduplication import DeduplicationConfig
from data_prep.inputs import InputError, Reading, find_inputs
from data_prep.repeats import RepeatsConfig
from data_prep.tokenize_corpus import tokenize
from deberta_scale.config_data import ConfigError
from tests.reading import json_lines, write
from tests.reading_shards import digests_of

EXACT = RepeatsConfig(deduplication=DeduplicationConfig(documents=True))
TEXTS = [f"document {n}\nand its number is {n}" for n in range(200)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write(tmp_path / "text.jsonl", json_lines(*TEXTS))


def prepare(text: Path, out: Path, shards: Path, **options: Any) -> dict[str, Any] | None:
    options = {"validation_fraction": 0.2, "shard_tokens": 500} | options
    return tokenize(find_inputs([text]), Reading(), shards / "tokenizer", out, **options)


def test_another_tokenizer_in_the_place_of_one_that_was_used_is_the_one_that_cuts(
    prepared_shards: Path, text: Path, tmp_path: Path
) -> None:
    place = tmp_path / "changing"
    shutil.copytree(prepared_shards / "tokenizer", place / "tokenizer")
    first = prepare(text, tmp_path / "first", place)
    add_tokens(place / "tokenizer", ["document"], tmp_path / "grown")
    shutil.rmtree(place / "tokenizer")
    (tmp_path / "grown").rename(place / "tokenizer")
    second = prepare(text, tmp_path / "second", place)
    assert first is not None and second is not None
    assert second["train"]["vocabulary_size"] == first["train"]["vocabulary_size"] + 1
    assert second["train"]["fingerprint"] != first["train"]["fingerprint"]


def by_language(function: str) -> CleaningConfig:
    return CleaningConfig.model_validate({"language": {"callable": function, "keep": ["en"]}})


def fails_in_the_middle(text: str) -> str:
    if "document 150" in text:
        raise RuntimeError("no model")
    return "en"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("repeats", [RepeatsConfig(), EXACT], ids=["no repeats", "repeats"])
def test_a_language_function_that_fails_leaves_nothing_behind(
    prepared_shards: Path, text: Path, tmp_path: Path, workers: int, repeats: RepeatsConfig
) -> None:
    cleaning = by_language(f"{__name__}:fails_in_the_middle")
    with pytest.raises(ConfigError, match=r"fails_in_the_middle' failed with RuntimeError: no model"):
        prepare(text, tmp_path / "out", prepared_shards, cleaning=cleaning, repeats=repeats, workers=workers)
    assert list(tmp_path.iterdir()) == [text]


def test_a_language_function_that_cannot_be_imported_is_told_before_any_work(
    prepared_shards: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot import no_such_module_here"):
        prepare(text, tmp_path / "out", prepared_shards, cleaning=by_language("no_such_module_here:f"))
    assert list(tmp_path.iterdir()) == [text]


def test_a_result_of_a_language_function_as_it_was_is_not_taken_for_this_ones(
    prepared_shards: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "code" / "changing_language.py"
    module.parent.mkdir()
    monkeypatch.syspath_prepend(str(module.parent))

    def prepare_with(code: str) -> dict[str, Any] | None:
        monkeypatch.delitem(sys.modules, "changing_language", raising=False)
        module.write_text(f"def code_of(text):\n    return {code}\n")
        return prepare(text, tmp_path / "out", prepared_shards, cleaning=by_language("changing_language:code_of"))

    first = prepare_with("'en'")
    assert first is not None and first["cleaning"]["language"]["documents_dropped"] == 0
    before = digests_of(tmp_path / "out")
    assert prepare_with("'en'") == first
    with pytest.raises(ValueError, match="exists and is not empty"):
        prepare_with("'en' if '7' in text else 'de'")
    assert digests_of(tmp_path / "out") == before


def test_the_digest_is_of_the_file_that_a_function_is_written_in() -> None:
    assert source_digest(fails_in_the_middle) == source_digest(load_language(f"{__name__}:by_language"))
    assert source_digest(fails_in_the_middle) != source_digest(load_language("unicodedata:name"))
    assert source_digest(load_language("builtins:repr")) is None


def test_what_was_found_of_duplicates_outlives_a_split_without_a_document(
    prepared_shards: Path, text: Path, tmp_path: Path
) -> None:
    out, place = tmp_path / "out", tmp_path / "out.repeats.partial"
    with pytest.raises(InputError, match="Another fraction goes on from the duplicates") as caught:
        prepare(text, out, prepared_shards, repeats=EXACT, validation_fraction=1e-9)
    assert str(place) in str(caught.value) and "validation_fraction in a data description" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [place, text]

    def not_again(*_: Any) -> None:
        raise AssertionError("the text was read again to look for duplicates")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.repeats._Digester.do", not_again)
        assert prepare(text, out, prepared_shards, repeats=EXACT) is not None
    assert sorted(tmp_path.iterdir()) == [out, text]
