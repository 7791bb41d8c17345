"""A tokenizer is refused unless it is the one that was made, and knows what masking asks of each piece."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from deberta_scale.data.tokenizer import (
    PUNCTUATION,
    SPECIAL,
    SPECIAL_PIECES,
    UNSPACED_SCRIPT,
    WORD_START,
    Tokenizer,
    TokenizerError,
)

MANY_SCRIPTS = [
    "The end, it was said; and so (indeed) it was! 1 + 1 = 2, a-b = c.",
    "吾輩は猫である。名前はまだ無い。",
    "ภาษาไทยไม่เว้นวรรค",
    "한국어는 띄어쓴다",
    "русский язык",
] * 20


@pytest.fixture
def tokenizer_dir(prepared_shards: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(prepared_shards / "tokenizer", tmp_path / "tokenizer"))


@pytest.fixture(scope="module")
def english(prepared_shards: Path) -> Tokenizer:
    return Tokenizer.load(prepared_shards / "tokenizer")


@pytest.fixture(scope="module")
def flags_of_piece() -> dict[str, int]:
    """By piece, of a model with several scripts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(MANY_SCRIPTS),
        model_writer=model,
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece=SPECIAL_PIECES[0],
        bos_piece=SPECIAL_PIECES[1],
        eos_piece=SPECIAL_PIECES[2],
        unk_piece=SPECIAL_PIECES[3],
        user_defined_symbols=["▁very▁good", "...", "ok!"],
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = Tokenizer(processor, "")
    return {tokenizer.piece(token): int(flags) for token, flags in enumerate(tokenizer.flags())}


def message_on_loading(directory: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(directory)
    return str(caught.value)


def change_metadata(directory: Path, **changes: Any) -> None:
    path = directory / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["spm.model", "metadata.json"])
def test_a_missing_file_is_named_with_what_makes_it(tokenizer_dir: Path, name: str) -> None:
    (tokenizer_dir / name).unlink()
    message = message_on_loading(tokenizer_dir)
    assert f"{tokenizer_dir / name}: cannot be read (No such file or directory)" in message
    assert "data_prep/train_tokenizer.py" in message


def test_a_changed_model_is_refused(tokenizer_dir: Path) -> None:
    path = tokenizer_dir / "spm.model"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert message_on_loading(tokenizer_dir).startswith(f"{path}: its sha256 is ")


def test_another_version_of_sentencepiece_is_refused_with_the_command_that_installs_it(tokenizer_dir: Path) -> None:
    change_metadata(tokenizer_dir, sentencepiece_version="0.1.99")
    message = message_on_loading(tokenizer_dir)
    assert f"made with sentencepiece 0.1.99, installed is {sentencepiece.__version__}" in message
    assert "pip install sentencepiece==0.1.99" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format_version": 2}, "not the metadata of a tokenizer of format version 1"),
        ({"mask_id": 3}, "mask_id is 3, spm.model gives 600"),
        ({"pieces": None}, "pieces is None, spm.model gives 600"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tokenizer_dir: Path, changes: dict[str, Any], expected: str) -> None:
    change_metadata(tokenizer_dir, **changes)
    message = message_on_loading(tokenizer_dir)
    assert message.startswith(f"{tokenizer_dir / 'metadata.json'}: ") and expected in message


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_metadata_that_is_not_json_is_refused(tokenizer_dir: Path, content: bytes) -> None:
    (tokenizer_dir / "metadata.json").write_bytes(content)
    assert f"{tokenizer_dir / 'metadata.json'}: not valid JSON" in message_on_loading(tokenizer_dir)


def test_a_model_with_other_special_pieces_is_refused(tokenizer_dir: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]), model_writer=model, vocab_size=10, hard_vocab_limit=False, minloglevel=2
    )
    (tokenizer_dir / "spm.model").write_bytes(model.getvalue())
    change_metadata(tokenizer_dir, sha256=hashlib.sha256(model.getvalue()).hexdigest())
    expected = "its first pieces are <unk>, <s>, </s>, "
    assert f"{tokenizer_dir / 'spm.model'}: {expected}" in message_on_loading(tokenizer_dir)


def test_encoding_adds_no_special_token(english: Tokenizer) -> None:
    [ids] = english.encode(["She was kind."])
    assert not any(english.flags()[ids] & SPECIAL)
    assert english.decode(ids) == "She was kind."


def test_decoding_shows_masks_and_hides_the_frame_of_a_row(english: Tokenizer) -> None:
    first, second = (list(ids) for ids in english.encode(["She was", "to see him."]))
    row = [english.cls_id, *first, english.mask_id, *second, english.sep_id, english.pad_id, english.pad_id]
    assert english.decode(row) == "She was [MASK] to see him."


def test_flags_cover_the_whole_vocabulary(english: Tokenizer) -> None:
    assert len(english.flags()) == english.vocabulary_size == 601


def test_only_the_five_special_pieces_are_special(english: Tokenizer) -> None:
    special = [token for token, flags in enumerate(english.flags()) if flags & SPECIAL]
    assert special == [0, 1, 2, 3, english.mask_id]
    assert all(english.flags()[token] == SPECIAL for token in special)


def test_a_piece_with_the_space_sign_starts_a_word_and_one_without_does_not(flags_of_piece: dict[str, int]) -> None:
    assert flags_of_piece["▁very▁good"] == WORD_START
    assert flags_of_piece["▁"] == WORD_START
    assert flags_of_piece["e"] == 0


def test_one_punctuation_mark_is_a_word_of_its_own(flags_of_piece: dict[str, int]) -> None:
    for mark in ",;!()-+=.":
        assert flags_of_piece[mark] == PUNCTUATION | WORD_START, mark


def test_a_run_of_punctuation_marks_belongs_to_the_word_before(flags_of_piece: dict[str, int]) -> None:
    assert flags_of_piece["..."] == PUNCTUATION


def test_a_word_with_a_mark_in_it_is_no_punctuation(flags_of_piece: dict[str, int]) -> None:
    assert flags_of_piece["ok!"] == 0


@pytest.mark.parametrize("character", ["猫", "は", "ภ", "ไ"])
def test_pieces_of_scripts_without_spaces_each_start_a_word(flags_of_piece: dict[str, int], character: str) -> None:
    found = {piece: flags for piece, flags in flags_of_piece.items() if character in piece}
    assert found and all(flags & UNSPACED_SCRIPT and flags & WORD_START for flags in found.values()), found


def test_scripts_with_spaces_are_left_alone(flags_of_piece: dict[str, int]) -> None:
    for character in "국к":
        assert flags_of_piece[character] == 0


def test_bytes_start_no_word_since_they_are_parts_of_a_character(english: Tokenizer) -> None:
    assert not english.flags()[4 : 4 + 256].any()
