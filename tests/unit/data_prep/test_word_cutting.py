"""Words that were cut before give the ids that sentencepiece gives, whatever the text and the model."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from data_prep import word_cutting
from data_prep.encoding import Encode, encoder_of
from deberta_scale.data.tokenizer import Tokenizer
from tests.vocabularies import train_byte_pairs, write_vocabulary_and_merges


def check_same(tokenizer: Tokenizer, encode: Encode, texts: list[str]) -> None:
    for text, found, expected in zip(texts, encode(texts), tokenizer.encode(texts), strict=True):
        assert found.dtype == expected.dtype == np.int32 and found.tolist() == expected.tolist(), text


@pytest.fixture(scope="module")
def tokenizer(prepared_shards: Path) -> Tokenizer:
    return Tokenizer.load(prepared_shards / "tokenizer")


@pytest.fixture(scope="module")
def encode(tokenizer: Tokenizer) -> Encode:
    return encoder_of(tokenizer)


awkward = st.sampled_from("aeht sn.'\u2581é漢ﬁ\u0301\u00a0\u3000\u200b\t\0😀\ufffd")


@given(st.lists(st.text(awkward, max_size=40), max_size=5))
def test_any_text_gives_the_same_ids(tokenizer: Tokenizer, encode: Encode, texts: list[str]) -> None:
    check_same(tokenizer, encode, texts)


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_unicode_gives_the_same_ids(tokenizer: Tokenizer, encode: Encode, texts: list[str]) -> None:
    check_same(tokenizer, encode, texts)


def test_real_text_gives_the_same_ids_and_hardly_any_of_it_is_left_to_sentencepiece(
    tokenizer: Tokenizer, sample_documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paragraphs = [paragraph for document in sample_documents for paragraph in document.split("\n")]
    expected = tokenizer.encode(paragraphs)
    encode, left = encoder_of(tokenizer), []
    monkeypatch.setattr(tokenizer, "encode", lambda texts: left.extend(texts) or Tokenizer.encode(tokenizer, texts))
    for _ in range(2):  # of words that are new, and of words that were cut before
        found = encode(paragraphs)
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
    assert 0 < len(left) < 0.1 * len(paragraphs)


def test_a_table_that_is_full_begins_anew(
    tokenizer: Tokenizer, sample_documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder_of(tokenizer)
    cutter = encode.__self__  # type: ignore[attr-defined]
    limit = len(cutter._words.ids)
    monkeypatch.setattr(cutter, "_words", cutter._words._replace(ids=cutter._words.ids[: limit // 2**12]))
    for document in sample_documents[:10]:
        check_same(tokenizer, encode, document.split("\n"))
    assert cutter._words.strings.count[0] < 300


def model_of(pieces: list[tuple[str, float]]) -> Tokenizer:
    """A unigram model with these pieces and logarithms of probabilities, in the form that sentencepiece reads."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        body = field(1, text.encode()) + b"\x15" + np.float32(score).tobytes() + bytes([0x18, kind])
        return field(1, body)

    kinds = [("[PAD]", 3), ("[CLS]", 3), ("[SEP]", 3), ("[UNK]", 2)]
    model = b"".join(piece(text, 0.0, kind) for text, kind in kinds)
    model += b"".join(piece(text, score, 1) for text, score in pieces)
    model += field(2, b"\xc0\x02\x03\xc8\x02\x01\xd0\x02\x02\xd8\x02\x00")  # ids of [UNK], [CLS], [SEP] and [PAD]
    return Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model))


def test_cuts_that_are_as_likely_are_left_to_sentencepiece() -> None:
    """Far on in a text, rounding decides between a|bc, ab|c and a|b|c, and not as it does at the beginning."""
    draws = random.Random(0)
    scores = [-1.1, -2.3, -1.7, -3.40001, -4.00001, -2.9, -0.1]
    tokenizer = model_of(list(zip(["a", "b", "c", "ab", "bc", "\u2581a", "\u2581"], scores, strict=True)))
    encode = encoder_of(tokenizer)
    assert encode != tokenizer.encode
    words = ["".join(draws.choices("abc", k=draws.randint(1, 6))) for _ in range(50)]
    texts = [" ".join(draws.choices(words, k=length)) for length in (1, 3, 10, 100, 1000, 30_000)]
    check_same(tokenizer, encode, texts)
    whole = tokenizer.encode([texts[-1]])[0].tolist()
    by_word = [token for word in texts[-1].split(" ") for token in tokenizer.encode([word])[0].tolist()]
    assert whole != by_word, "rounding decided nothing"


def test_models_whose_words_cannot_be_cut_one_by_one_are_left_alone(
    tokenizer: Tokenizer, sample_documents: list[str], tmp_path: Path
) -> None:
    paragraphs = [paragraph for document in sample_documents[:3] for paragraph in document.split("\n")]
    for options in ({"split_by_whitespace": False}, {"model_type": "bpe"}, {"user_defined_symbols": ["<x>"]}):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(paragraphs), model_writer=model, vocab_size=300, minloglevel=2, **options
        )
        other = Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))
        assert encoder_of(other) == other.encode, options
    grown = Tokenizer(tokenizer.model, added_tokens=("<drug>",))
    assert encoder_of(grown) == grown.encode
    pytest.importorskip("tokenizers", reason="what cuts text into byte pairs; pip install '.[peers]'")
    directory = write_vocabulary_and_merges(train_byte_pairs(sample_documents[:3], 400), tmp_path / "tokenizer")
    pairs = Tokenizer.load(directory)
    assert encoder_of(pairs) == pairs.encode


def test_a_model_that_changes_plain_text_is_asked_for_every_text(sample_documents: list[str], tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("74 68\tfe\n")  # "th" becomes a thorn
    model = io.BytesIO()
    paragraphs = [paragraph for document in sample_documents[:3] for paragraph in document.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(paragraphs),
        model_writer=model,
        vocab_size=300,
        normalization_rule_tsv=str(rules),
        minloglevel=2,
    )
    tokenizer = Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))
    encode = encoder_of(tokenizer)
    assert encode != tokenizer.encode
    check_same(tokenizer, encode, ["this and that", "", " two  spaces ", *paragraphs[:20]])


def test_text_without_spaces_is_soon_given_to_sentencepiece_directly(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder_of(tokenizer)
    texts = ["漢字かな" * 100] * 10
    monkeypatch.setattr(word_cutting, "_TRIED_BYTES", 1000)
    check_same(tokenizer, encode, texts)
    monkeypatch.setattr(word_cutting, "cut", None)
    check_same(tokenizer, encode, texts)
