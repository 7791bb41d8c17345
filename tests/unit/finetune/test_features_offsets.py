"""Offsets of tokens: the ids are those of `encode`, and each token's characters are cut from the text as given."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from deberta_scale.data.tokenizer import Tokenizer
from tests.vocabularies import train_byte_pairs, train_pieces, write_vocabulary_and_merges

TRAINING = ["The end, it was said; and so (indeed) it was! 1 + 1 = 2.", "吾輩は猫である。名前はまだ無い。"] * 20
TEXTS = [
    "",
    "   ",
    "The end, it was said.",
    "  Two  spaces\nand a line",
    "the ﬁne ① é 猫ß😀 x",
    "Before <one> and<two>after  <one>",
    "吾輩は very good 猫",
]


def pieces(**options: object) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=train_pieces(TRAINING, 360, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["bytes", "unknown", "symbols", "added", "byte pairs", "byte pairs, added"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    added = ("<one>", "<two>") if request.param.endswith("added") else ()
    if request.param.startswith("byte pairs"):
        directory: Path = tmp_path_factory.mktemp("byte_pairs")
        loaded = Tokenizer.load(write_vocabulary_and_merges(train_byte_pairs(TRAINING, 300), directory))
        return Tokenizer(loaded.model, added_tokens=added)
    own = ("▁very▁good", "<two>") if request.param == "symbols" else ()
    return Tokenizer(pieces(byte_fallback=request.param != "unknown", own=own), added_tokens=added)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_encode(tokenizer: Tokenizer, text: str) -> None:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode([text])[0].tolist()
    assert offsets.shape == (len(ids), 2)


@pytest.mark.parametrize("text", TEXTS)
def test_the_characters_of_all_tokens_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    """In order, none left out but white space, which normalisation may drop."""
    _, offsets = tokenizer.encode_with_offsets(text)
    covered = np.zeros(len(text), dtype=bool)
    for begin, end in offsets:
        covered[begin:end] = True
    assert "".join(c for c, there in zip(text, covered, strict=True) if not there).strip() == ""
    assert (np.diff(offsets[:, 0]) >= 0).all() if len(offsets) else True


def test_a_piece_is_cut_from_the_text_before_it_was_normalised() -> None:
    tokenizer = Tokenizer(pieces())
    text = "so  ① was"
    _, offsets = tokenizer.encode_with_offsets(text)
    cut = [text[begin:end].strip() for begin, end in offsets if text[begin:end].strip()]
    assert "①" in cut and "1" not in cut
    assert "".join(cut).replace(" ", "") == "so①was"


def test_every_byte_of_a_character_stands_for_the_character() -> None:
    tokenizer = Tokenizer(pieces())
    ids, offsets = tokenizer.encode_with_offsets("so😀")
    assert tokenizer.piece(int(ids[-4])) == "<0xF0>"
    assert offsets[-4:].tolist() == [[2, 3]] * 4
