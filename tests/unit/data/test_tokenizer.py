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
    UNSPACED_SCRIPT,
    WORD_START,
    Tokenizer,
    TokenizerError,
)
from tests.vocabularies import train_pieces

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
    model = train_pieces(MANY_SCRIPTS, 400, own=("▁very▁good", "...", "ok!"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = Tokenizer(processor, "")
    return {tokenizer.piece(token): int(flags) for token, flags in enumerate(tokenizer.flags())}


def message_on_loading(directory: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(directory)
    return str(caught.value)


def change_metadata(directory: Path, **changes: Any) -> None:
    path = directory / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_file_is_named_with_what_makes_it(tokenizer_dir: Path) -> None:
    (tokenizer_dir / "spm.model").unlink()
    message = message_on_loading(tokenizer_dir)
    assert f"{tokenizer_dir / 'spm.model'}: cannot be read (No such file or directory)" in message
    assert "data_prep/train_tokenizer.py" in message


def test_a_directory_without_any_tokenizer_says_what_would_be_one(tmp_path: Path) -> None:
    message = message_on_loading(tmp_path)
    assert message.startswith(f"{tmp_path / 'metadata.json'}: cannot be read (No such file or directory)")
    assert "data_prep/train_tokenizer.py" in message
    for name in ("spm.model", "vocab.json and merges.txt", "bpe_encoder.bin", "tokenizer.json"):
        assert name in message


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
        ({"kind": "words"}, "kind is 'words'; known are 'sentencepiece' and 'byte_pair'"),
        ({"added_tokens": [3]}, "added_tokens is [3], not a list of strings"),
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


def test_a_released_directory_is_a_model_alone(tokenizer_dir: Path, english: Tokenizer) -> None:
    (tokenizer_dir / "metadata.json").unlink()
    released = Tokenizer.load(tokenizer_dir)
    assert released.describe() == english.describe()
    assert released.describe()["sentencepiece_version"] == sentencepiece.__version__


def test_a_released_directory_is_written_down_with_the_version_that_cuts_and_held_to_it(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    (tokenizer_dir / "metadata.json").unlink()
    (tmp_path / "copy").mkdir()
    for name, content in Tokenizer.load(tokenizer_dir).files().items():
        (tmp_path / "copy" / name).write_bytes(content)
    assert Tokenizer.load(tmp_path / "copy").sha256 == Tokenizer.load(tokenizer_dir).sha256
    change_metadata(tmp_path / "copy", sentencepiece_version="0.1.99")
    assert "pip install sentencepiece==0.1.99" in message_on_loading(tmp_path / "copy")


def test_metadata_of_an_older_format_without_kind_and_added_tokens_is_read(tokenizer_dir: Path) -> None:
    path = tokenizer_dir / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in metadata.items() if k not in ("kind", "added_tokens")}))
    assert Tokenizer.load(tokenizer_dir).metadata() == metadata


def test_a_released_model_that_is_none_is_named(tokenizer_dir: Path) -> None:
    (tokenizer_dir / "metadata.json").unlink()
    (tokenizer_dir / "spm.model").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert message_on_loading(tokenizer_dir).startswith(f"{tokenizer_dir / 'spm.model'}: not a sentencepiece model")


def test_a_mask_among_the_pieces_keeps_its_id(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(train_pieces(MANY_SCRIPTS, 400, own=("[MASK]",)))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.mask_id == 4 and tokenizer.piece(4) == "[MASK]"
    assert tokenizer.vocabulary_size == tokenizer.pieces == tokenizer.processor.piece_size()
    assert tokenizer.flags()[4] == SPECIAL


def test_encoding_adds_no_special_token(english: Tokenizer) -> None:
    [ids] = english.encode(["She was kind."])
    assert not any(english.flags()[ids] & SPECIAL)
    assert english.decode(ids) == "She was kind."


def test_decoding_shows_masks_and_hides_the_frame_of_a_row(english: Tokenizer) -> None:
    first, second = (list(ids) for ids in english.encode(["She was", "to see him."]))
    row = [english.cls_id, *first, english.mask_id, *second, english.sep_id, english.pad_id, english.pad_id]
    assert english.decode(row) == "She was [MASK] to see him."


def test_decoding_puts_no_space_after_a_mask_where_there_is_none(english: Tokenizer) -> None:
    assert english.decode(english.encode_masked("It was [MASK], un[MASK]able.")) == "It was [MASK], un [MASK]able."


def test_an_unknown_character_beside_a_mask_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(train_pieces(MANY_SCRIPTS, 150, byte_fallback=False))
    tokenizer = Tokenizer.load(tmp_path)
    mask, unknown = tokenizer.mask_id, tokenizer.unk_id
    assert tokenizer.encode_masked("[MASK]魑魅") == [mask, unknown]
    assert tokenizer.encode_masked("[MASK] 魑魅") == [mask, *tokenizer.encode(["魑魅"])[0].tolist()]


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


def test_bytes_are_parts_of_a_character_and_start_no_word_but_where_they_begin_nothing_but_han(
    english: Tokenizer,
) -> None:
    flags = english.flags()[4 : 4 + 256]
    assert [byte for byte in range(256) if flags[byte]] == list(range(0xE4, 0xEA))
    assert all(flags[0xE4:0xEA] == WORD_START | UNSPACED_SCRIPT)
