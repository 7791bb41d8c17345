"""A trained tokenizer has the ids of the released ones, loses no character, and is the same in every run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.inputs import InputError, Reading, find_inputs
from data_prep.train_tokenizer import VocabularySizeError, train
from deberta_scale.data.tokenizer import Tokenizer

VOCABULARY = 400


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, sample_documents: list[str]) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(sample_documents[:4]))
    return path


@pytest.fixture(scope="module")
def trained(text: Path) -> Path:
    directory = text.parent / "tokenizer"
    train(find_inputs([text]), Reading(), VOCABULARY, directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(trained: Path) -> Tokenizer:
    return Tokenizer.load(trained)


def train_on(text: Path, vocab_size: int, out: Path, **options: Any) -> dict[str, Any]:
    return train(find_inputs([text]), Reading(), vocab_size, out, **options)


def test_special_pieces_have_the_ids_of_the_released_tokenizers(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(token) for token in range(4)] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id) == (0, 1, 2, 3)


def test_all_bytes_follow_the_special_pieces(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(4 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]


def test_the_mask_comes_after_the_last_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces == tokenizer.mask_id == VOCABULARY
    assert tokenizer.vocabulary_size == VOCABULARY + 1
    assert tokenizer.piece(VOCABULARY) == "[MASK]"


# nmt_nfkc changes some characters for good (ligatures, variation forms); these planes are left as they are.
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF), min_size=1, max_size=8))
def test_any_emoji_comes_back_through_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    [ids] = tokenizer.encode([text])
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == text


def test_text_that_spells_a_special_piece_does_not_become_one(tokenizer: Tokenizer) -> None:
    [ids] = tokenizer.encode(["[PAD] [CLS] [SEP] [UNK] [MASK] <0x41>"])
    assert min(ids) > tokenizer.unk_id and max(ids) < tokenizer.mask_id
    assert tokenizer.decode(ids) == "[PAD] [CLS] [SEP] [UNK] [MASK] <0x41>"


def test_the_same_text_gives_the_same_bytes(text: Path, trained: Path, tmp_path: Path) -> None:
    train_on(text, VOCABULARY, tmp_path / "again")
    for name in ("spm.model", "metadata.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


def test_metadata_says_what_the_model_is_and_was_trained_on(text: Path, trained: Path) -> None:
    metadata = json.loads((trained / "metadata.json").read_text())
    assert metadata["pieces"] == VOCABULARY
    assert metadata["training"]["inputs"] == ["text.txt"]
    assert metadata["training"]["bytes"] == sum(len(line) for line in text.read_bytes().split(b"\n"))


def test_a_vocabulary_too_small_names_the_size_that_works(text: Path, tmp_path: Path) -> None:
    with pytest.raises(VocabularySizeError, match=r"^--vocab-size 100 is too small: .* give at least that") as caught:
        train_on(text, 100, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    found = re.search(r"need (\d+)", str(caught.value))
    assert found and train_on(text, int(found[1]), tmp_path / "out")["pieces"] == int(found[1])


def test_a_vocabulary_too_large_names_the_size_that_works(text: Path, tmp_path: Path) -> None:
    with pytest.raises(VocabularySizeError, match=r"^--vocab-size 90000 is too large for this much text") as caught:
        train_on(text, 90_000, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    found = re.search(r"at most (\d+)", str(caught.value))
    assert found and train_on(text, int(found[1]), tmp_path / "out")["pieces"] == int(found[1])


def test_input_without_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(InputError, match=re.escape(f"{empty}: no text in it, nothing to train on")):
        train_on(empty, VOCABULARY, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [empty]


def test_a_broken_line_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "good"}\n{"text": \n')
    with pytest.raises(InputError, match="line 2: not valid JSON"):
        train_on(broken, VOCABULARY, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [broken]


def test_a_directory_in_use_is_left_as_it_is(text: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep me")
    with pytest.raises(ValueError, match="exists and is not empty; give another directory"):
        train_on(text, VOCABULARY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_what_a_killed_run_left_is_replaced(text: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "spm.model").write_text("half")
    train_on(text, VOCABULARY, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "spm.model").read_bytes() == (trained / "spm.model").read_bytes()


def test_training_on_a_sample_says_how_much_it_took(text: Path, tmp_path: Path) -> None:
    metadata = train_on(text, 340, tmp_path / "out", max_input_bytes=20_000)
    assert 15_000 < metadata["training"]["bytes"] <= 20_000


def test_lower_coverage_leaves_rare_characters_to_their_bytes(text: Path, tmp_path: Path) -> None:
    train_on(text, VOCABULARY, tmp_path / "out", character_coverage=0.98)
    pieces = {Tokenizer.load(tmp_path / "out").piece(token) for token in range(VOCABULARY)}
    assert "e" in pieces and "W" not in pieces


def test_control_characters_which_no_shard_holds_are_not_trained_on(tmp_path: Path) -> None:
    clean, dirty = tmp_path / "clean.jsonl", tmp_path / "dirty.jsonl"
    lines = [f"the cat number {number} sat on the mat of the other cat" for number in range(200)]
    clean.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    dirty.write_text("".join(json.dumps({"text": line.replace("cat", "c\u0001at\ufeff")}) + "\n" for line in lines))
    for path in (clean, dirty):
        train_on(path, 300, tmp_path / path.stem)
    assert (tmp_path / "clean" / "spm.model").read_bytes() == (tmp_path / "dirty" / "spm.model").read_bytes()
