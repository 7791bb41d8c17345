"""The tokenizer of V1 gives the ids of the release from any of its files, and knows what masking asks of each piece."""

import json
import sys
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from deberta_scale.data.tokenizer import (
    PUNCTUATION,
    SPECIAL,
    UNSPACED_SCRIPT,
    WORD_START,
    Tokenizer,
    TokenizerError,
)
from deberta_scale.data.tokenizer_byte_pair import BYTE_SIGNS
from tests.vocabularies import FORMS, UNMADE, Vocabulary, train_byte_pairs, write_official, write_vocabulary_and_merges

pytest.importorskip("tokenizers", reason="what cuts text into byte pairs; pip install '.[peers]'")
regex = pytest.importorskip("regex", reason="for the slow twin; comes with transformers")

MANY_SCRIPTS = ["吾輩は猫である。名前はまだ無い。", "русский язык", "ภาษาไทยไม่เว้นวรรค", "wait... what?! (so)"] * 100
TEXTS = [
    "She was kind. She didn't say so; they'll see!",
    "  two  spaces, a tab\tand a\n\nline feed  ",
    "",
    " ",
    "naïve café 😀 吾輩は猫である русский",
    "x=[1,2,30]; y = x**2 # 1,000.5",
    "[CLS] [MASK] <|endoftext|> madeupword0000 spelled out",
    "\u00a0\u2003\u200b odd\u3000spaces\x85",
]
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def slowly_encoded(vocabulary: Vocabulary, text: str) -> list[int]:
    """Byte pair encoding as it is described: the pair that was merged first in training is merged first, everywhere."""
    ranks = {pair: rank for rank, pair in enumerate(vocabulary.merges)}
    ids: list[int] = []
    for word in regex.findall(GPT2_PATTERN, text):
        parts = [BYTE_SIGNS[byte] for byte in word.encode()]
        while known := [pair for pair in pairwise(parts) if pair in ranks]:
            best = min(known, key=ranks.__getitem__)
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        ids += [vocabulary.ids[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def vocabulary(sample_documents: list[str]) -> Vocabulary:
    return train_byte_pairs([*sample_documents[:10], *MANY_SCRIPTS], 900)


@pytest.fixture(scope="module")
def directories(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("byte-pairs")
    return {form: write(vocabulary, parent / f"form{n}") for n, (form, write) in enumerate(FORMS.items())}


@pytest.fixture(scope="module")
def tokenizer(directories: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(directories["vocab.json and merges.txt"])


@pytest.mark.parametrize("form", FORMS)
def test_every_file_of_a_release_gives_the_same_tokenizer(
    directories: dict[str, Path], tokenizer: Tokenizer, form: str
) -> None:
    found = Tokenizer.load(directories[form])
    assert found.describe() == tokenizer.describe()
    assert found.files() == tokenizer.files()
    for text in TEXTS:
        assert found.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()


def test_the_ids_are_those_of_the_release(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    assert [tokenizer.piece(token) for token in range(4)] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert tokenizer.mask_id == tokenizer.pieces == len(vocabulary.ids) - 1
    assert tokenizer.vocabulary_size == len(vocabulary.ids)
    assert [tokenizer.piece(token) for token in range(tokenizer.vocabulary_size)] == list(vocabulary.ids)


def test_texts_are_cut_as_a_slow_twin_cuts_them(
    tokenizer: Tokenizer, vocabulary: Vocabulary, sample_documents: list[str]
) -> None:
    texts = [*TEXTS, *MANY_SCRIPTS[:4], *sample_documents[12][:4000].split("\n")]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.dtype == np.int32 and ids.tolist() == slowly_encoded(vocabulary, text), text


def test_no_space_is_put_before_the_first_word(tokenizer: Tokenizer) -> None:
    [first, after_a_space] = tokenizer.encode(["the", " the"])
    assert first.tolist() != after_a_space.tolist()
    assert [tokenizer.piece(token) for token in after_a_space] == ["Ġthe"]


def test_text_that_spells_a_special_piece_does_not_become_one(tokenizer: Tokenizer) -> None:
    [ids] = tokenizer.encode([TEXTS[6]])
    assert not any(tokenizer.flags()[ids] & SPECIAL)


@pytest.mark.parametrize("text", [text for text in TEXTS if text == text.strip()])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    [ids] = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.cls_id, *ids, tokenizer.sep_id, tokenizer.pad_id]) == text


def test_a_mask_takes_the_space_before_it_and_no_other(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_masked("He was [MASK], and un[MASK]able. [MASK]  [MASK]")
    assert [tokenizer.piece(token) for token in ids].count("[MASK]") == 4
    assert tokenizer.decode(ids) == "He was [MASK], and un [MASK]able. [MASK] [MASK]"
    rest = ids[ids.index(tokenizer.mask_id) + 1 :]
    assert tokenizer.encode_masked("He was so, and un[MASK]able. [MASK]  [MASK]")[-len(rest) :] == rest


def flags_of(tokenizer: Tokenizer, content: bytes) -> int:
    """Of the piece that consists of these bytes."""
    piece = "".join(BYTE_SIGNS[byte] for byte in content)
    return int(tokenizer.flags()[[tokenizer.piece(t) for t in range(tokenizer.pieces)].index(piece)])


def test_words_start_at_a_space_and_at_single_marks(tokenizer: Tokenizer) -> None:
    assert flags_of(tokenizer, b" the") == WORD_START
    assert flags_of(tokenizer, b"ing") == flags_of(tokenizer, b"e") == 0
    assert flags_of(tokenizer, b" ") == flags_of(tokenizer, b"\n") == WORD_START
    for mark in b",;.!?()-+=":
        assert flags_of(tokenizer, bytes([mark])) == WORD_START | PUNCTUATION, chr(mark)
    assert flags_of(tokenizer, b"...") == PUNCTUATION, "a run of marks belongs to the word before"
    assert flags_of(tokenizer, b" (") == WORD_START | PUNCTUATION


def test_scripts_without_spaces_start_a_word_at_every_character(tokenizer: Tokenizer) -> None:
    flags, found = tokenizer.flags(), 0
    for token in range(tokenizer.pieces):
        text = tokenizer.text_of(token)
        if text and all(unicodedata.name(c, "").startswith(("CJK UNIFIED", "HIRAGANA", "THAI CHAR")) for c in text):
            found += 1
            assert flags[token] & WORD_START and flags[token] & UNSPACED_SCRIPT, text
    assert found > 5


def test_bytes_are_parts_of_a_character(tokenizer: Tokenizer) -> None:
    for byte in range(0x80, 0xC0):
        assert flags_of(tokenizer, bytes([byte])) == 0, "a continuation joins what stands before it"
    assert flags_of(tokenizer, "猫".encode()[:1]) == WORD_START | UNSPACED_SCRIPT, "every character on E7 is Han"
    assert flags_of(tokenizer, "é".encode()[:1]) == flags_of(tokenizer, "😀".encode()[:1]) == 0


def test_what_no_text_gives_is_special(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    special = [tokenizer.piece(token) for token, flags in enumerate(tokenizer.flags()) if flags & SPECIAL]
    assert special == ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *UNMADE, "[MASK]"]


def test_a_mask_that_is_not_in_the_files_comes_after_them(vocabulary: Vocabulary, tmp_path: Path) -> None:
    without = {piece: token for piece, token in vocabulary.ids.items() if piece != "[MASK]"}
    changed = Vocabulary(vocabulary.encoder, vocabulary.merges, without)
    tokenizer = Tokenizer.load(write_vocabulary_and_merges(changed, tmp_path))
    assert tokenizer.mask_id == len(without) and tokenizer.vocabulary_size == len(without) + 1
    assert tokenizer.flags()[tokenizer.mask_id] == SPECIAL


def test_ids_without_a_piece_are_special_and_keep_their_place(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with_holes = {piece: token for piece, token in vocabulary.ids.items() if piece not in UNMADE}
    changed = Vocabulary(vocabulary.encoder, vocabulary.merges, with_holes)
    tokenizer = Tokenizer.load(write_vocabulary_and_merges(changed, tmp_path))
    assert tokenizer.mask_id == vocabulary.ids["[MASK]"]
    hole = vocabulary.ids[UNMADE[1]]
    assert tokenizer.flags()[hole] == SPECIAL and tokenizer.piece(hole) == f"[unused {hole}]"


def test_loading_flags_and_decoding_need_no_package_and_encoding_names_it(
    directories: dict[str, Path], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    [ids] = tokenizer.encode(["She was kind."])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    found = Tokenizer.load(directories["bpe_encoder.bin"])
    assert found.decode(ids) == "She was kind." and len(found.flags()) == found.vocabulary_size
    with pytest.raises(TokenizerError, match=r"needs the package tokenizers, .* 'deberta-scale\[peers\]'"):
        found.encode(["text"])


CHANGES: dict[str, tuple[Callable[[Vocabulary], object], str]] = {
    "a byte is missing": (lambda v: v.ids.pop(BYTE_SIGNS[0x41]), "no piece for 1 of the 256 bytes, the first 0x41"),
    "a merge makes no piece": (lambda v: v.merges.append(("Ġthe", "Ġthe")), "needs the piece 'ĠtheĠthe'"),
    "not a pair": (lambda v: v.merges.append(("a", "b", "c")), "the merge 'a b c' is not a pair"),  # type: ignore[arg-type]
    "other special ids": (lambda v: v.ids.update({"[PAD]": 3, "[UNK]": 0}), "its first pieces are [UNK], [CLS],"),
    "an id twice": (lambda v: v.ids.update({"e": 9}), "two pieces have the same id"),
    "an id far off": (lambda v: v.ids.update({"[MASK]": 10**7}), "ids up to 10000000; this is no vocabulary"),
    "no ids": (lambda v: v.ids.update({"e": "f"}), "not a vocabulary, an object that gives each piece its id"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_vocabulary_that_cannot_be_used_is_refused(vocabulary: Vocabulary, tmp_path: Path, name: str) -> None:
    change, expected = CHANGES[name]
    changed = Vocabulary(vocabulary.encoder, list(vocabulary.merges), dict(vocabulary.ids))
    change(changed)
    write_vocabulary_and_merges(changed, tmp_path)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "vocab.json")) and expected in str(caught.value)


class _Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


@pytest.mark.parametrize("content", [{"encoder": {}}, [1, 2], _Harmful(), {"encoder": {}, "vocab": [], "dict_map": 3}])
def test_a_file_that_is_not_the_official_vocabulary_is_refused_and_never_run(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "bpe_encoder.bin")
    with pytest.raises(TokenizerError, match=r"bpe_encoder\.bin: not the vocabulary of the official release"):
        Tokenizer.load(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_truncated_official_file_is_named(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = write_official(vocabulary, tmp_path) / "bpe_encoder.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TokenizerError, match=r"bpe_encoder\.bin: not the vocabulary"):
        Tokenizer.load(tmp_path)


def test_a_fast_file_of_another_kind_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: a tokenizer of type Unigram, .* put its spm\.model"):
        Tokenizer.load(tmp_path)
