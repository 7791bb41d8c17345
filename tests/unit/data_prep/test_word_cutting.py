"""Words that were cut before give the ids that sentencepiece gives, whatever the text and the model."""

import io
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from data_prep import tokenize_corpus, word_cutting
from data_prep.add_tokens import add_tokens
from data_prep.encoding import Encode, encoder_of, why_not_by_words
from data_prep.word_tables import tree_of
from deberta_scale.data.tokenizer import Tokenizer
from tests.launching import ROOT
from tests.reading import json_lines, write
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


def left_to_sentencepiece(tokenizer: Tokenizer, encode: Encode, texts: list[str]) -> list[str]:
    """Those that the words did not do; the ids of all are the right ones."""
    left: list[str] = []
    expected = tokenizer.encode(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "encode", lambda texts: left.extend(texts) or Tokenizer.encode(tokenizer, texts))
        found = encode(texts)
    for text, ids, right in zip(texts, found, expected, strict=True):
        assert ids.dtype == right.dtype == np.int32 and ids.tolist() == right.tolist(), text
    return left


KNOWN = "aeht sn.'\u2581ﬁ\u00a0\u3000\u200b\t\ufffd"
"""Characters with pieces, and some that become such ones, or none at all."""


def test_any_text_gives_the_same_ids_and_most_of_it_by_words(tokenizer: Tokenizer) -> None:
    encode, counts = encoder_of(tokenizer), Counter[str]()
    known = st.text(st.sampled_from(KNOWN), max_size=40)

    @given(st.lists(known, max_size=5), st.text(st.sampled_from(f"{KNOWN}é漢😀\u0301"), max_size=40), st.integers(0, 5))
    def check(texts: list[str], foreign: str, place: int) -> None:
        texts.insert(place, foreign)
        counts["left"] += len(left_to_sentencepiece(tokenizer, encode, texts))
        counts["all"] += len(texts)

    check()
    assert 0 < counts["left"] < 0.5 * counts["all"]


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_unicode_gives_the_same_ids(tokenizer: Tokenizer, encode: Encode, texts: list[str]) -> None:
    check_same(tokenizer, encode, texts)


def test_a_nul_sends_no_other_text_to_sentencepiece(tokenizer: Tokenizer, encode: Encode) -> None:
    texts = ["the hat", "the\0hat", "\0", "that is"]
    assert left_to_sentencepiece(tokenizer, encode, texts) == ["the\0hat", "\0"]


def test_real_text_gives_the_same_ids_and_hardly_any_of_it_is_left_to_sentencepiece(
    tokenizer: Tokenizer, sample_documents: list[str]
) -> None:
    paragraphs = [paragraph for document in sample_documents for paragraph in document.split("\n")]
    encode = encoder_of(tokenizer)
    for _ in range(2):  # of words that are new, and of words that were cut before
        assert 0 < len(left_to_sentencepiece(tokenizer, encode, paragraphs)) < 0.1 * len(paragraphs)


@pytest.mark.parametrize("limit", ["words", "bytes", "ids"])
def test_a_table_that_is_full_begins_anew(
    tokenizer: Tokenizer, sample_documents: list[str], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(word_cutting, "_MOST_WORDS", 256 if limit == "words" else 2**12)
    encode = encoder_of(tokenizer)
    cutter = encode.__self__  # type: ignore[attr-defined]
    words = cutter._words
    if limit == "bytes":
        words = words._replace(strings=words.strings._replace(content=words.strings.content[:2000]))
    if limit == "ids":
        words = words._replace(ids=words.ids[:1000])
    monkeypatch.setattr(cutter, "_words", words)
    for document in sample_documents[:10]:
        check_same(tokenizer, encode, document.split("\n"))
    assert 0 < words.strings.count[0] < 500


def model_of(pieces: list[tuple[str, float]], symbols: tuple[tuple[str, float], ...] = ()) -> Tokenizer:
    """A unigram model with these pieces and logarithms of probabilities, in the form that sentencepiece reads."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        body = field(1, text.encode()) + b"\x15" + np.float32(score).tobytes() + bytes([0x18, kind])
        return field(1, body)

    kinds = [("[PAD]", 3), ("[CLS]", 3), ("[SEP]", 3), ("[UNK]", 2)]
    model = b"".join(piece(text, 0.0, kind) for text, kind in kinds)
    model += b"".join(piece(text, score, 1) for text, score in pieces)
    model += b"".join(piece(text, score, 4) for text, score in symbols)
    model += field(2, b"\xc0\x02\x03\xc8\x02\x01\xd0\x02\x02\xd8\x02\x00")  # ids of [UNK], [CLS], [SEP] and [PAD]
    return Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model))


def test_a_word_meets_no_more_rounding_than_at_its_own_end() -> None:
    """Of "a" the likeliest cuts are so near each other that it is safe up to a cost of 2,000, and "b" has one cut."""
    pieces = [("\u2581a", -5.0), ("\u2581", -2.0), ("a", -3.001), ("\u2581b", -1.0), ("b", -30.0)]
    tokenizer = model_of(pieces)
    begins, ends, long = "a" + " b" * 5000, "b " * 5000 + "a", "b " * 15_000 + "b"
    assert left_to_sentencepiece(tokenizer, encoder_of(tokenizer), [begins, ends, long]) == [ends, long]


def test_a_symbol_with_a_score_as_of_other_pieces_is_never_cut() -> None:
    pieces = [("\u2581", -1.0), ("a", -1.0), ("b", -1.0), ("ba", -0.5), ("\u2581a", -0.5)]
    tokenizer = model_of(pieces, symbols=(("ab", -9.0),))
    assert tokenizer.symbols == ("ab",)
    assert why_not_by_words(tokenizer) == "it has user symbols"
    texts = ["ab", "aab", "abab a", "aba"]
    check_same(tokenizer, encoder_of(tokenizer), texts)
    assert [tokenizer.piece(token) for token in tokenizer.encode(["aba"])[0]] == ["\u2581", "ab", "a"]


def test_a_score_of_0_makes_no_symbol() -> None:
    tokenizer = model_of([("\u2581", -1.0), ("a", 0.0), ("b", -1.0), ("ab", -3.0)])
    assert tokenizer.symbols == () and why_not_by_words(tokenizer) is None
    assert not left_to_sentencepiece(tokenizer, encoder_of(tokenizer), ["ab a", "b aab"])


def test_scores_above_0_are_left_to_sentencepiece_since_sums_of_them_do_not_only_grow() -> None:
    tokenizer = model_of([("\u2581", -1.0), ("a", 0.5)])
    assert encoder_of(tokenizer) == tokenizer.encode


def test_cuts_that_are_as_likely_are_left_to_sentencepiece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far on in a text, rounding decides between a|bc, ab|c and a|b|c, and not as it does at the beginning."""
    draws = random.Random(0)
    scores = [-1.1, -2.3, -1.7, -3.40001, -4.00001, -2.9, -0.1]
    tokenizer = model_of(list(zip(["a", "b", "c", "ab", "bc", "\u2581a", "\u2581"], scores, strict=True)))
    monkeypatch.setattr(word_cutting, "_MOST_CHARACTERS", 10**6)
    encode = encoder_of(tokenizer)
    assert encode != tokenizer.encode
    words = ["".join(draws.choices("abc", k=draws.randint(1, 6))) for _ in range(50)]
    texts = [" ".join(draws.choices(words, k=length)) for length in (1, 3, 10, 100, 1000, 5000, 30_000)]
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


def test_foreign_text_after_english_is_soon_given_to_sentencepiece_directly_and_english_after_that_is_not(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder_of(tokenizer)
    foreign, english = ["漢字かな" * 100] * 10, ["the hat that is the best"] * 50
    monkeypatch.setattr(word_cutting, "_TRIED_BYTES", 1000)
    for _ in range(200):
        encode(english)
    check_same(tokenizer, encode, foreign)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_cutting, "cut", None)
        check_same(tokenizer, encode, foreign)
    for _ in range(200):
        encode(foreign)
    left = [len(left_to_sentencepiece(tokenizer, encode, english)) for _ in range(400)]
    assert left[0] == len(english) and not any(left[300:])


def test_every_string_of_a_tree_is_found_however_many_there_are() -> None:
    draws = random.Random(0)
    strings = sorted({bytes(draws.choices(range(1, 256), k=draws.randint(1, 5))) for _ in range(3000)})
    ends = np.cumsum([len(string) for string in strings])
    nodes, pieces = tree_of(np.frombuffer(b"".join(strings), np.uint8), ends)

    def found(string: bytes) -> int:
        node = 0
        for byte in string:
            base = nodes[node, 0]
            if base < 0 or nodes[base + byte, 1] != node:
                return -1
            node = base + byte
        return int(pieces[node])

    assert [found(string) for string in strings] == list(range(len(strings)))
    others = {bytes(draws.choices(range(1, 256), k=3)) for _ in range(1000)} - set(strings)
    assert {found(string) for string in others} == {-1}
    assert nodes[:, 0].max() + 255 < len(nodes) == len(pieces) < 2 * ends[-1]


def test_preparation_says_which_way_text_is_cut_and_why(
    prepared_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write(tmp_path / "text.jsonl", json_lines(*(f"document {number}" for number in range(50))))
    add_tokens(prepared_shards / "tokenizer", ["<drug>"], tmp_path / "grown")

    def said(directory: Path, out: Path) -> str:
        words = ["--input", texts, "--tokenizer", directory, "--out", out, "--validation-fraction", "0.5"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tokenize_corpus.py", *map(str, words)])
            assert tokenize_corpus.main() == 0
        return capsys.readouterr().out.splitlines()[0]

    way = f"tokenizing 1 file(s) with 1 worker(s) into {tmp_path}"
    assert said(prepared_shards / "tokenizer", tmp_path / "words") == f"{way}/words, word by word"
    expected = f"{way}/whole, by the tokenizer itself, since it has added tokens"
    assert said(tmp_path / "grown", tmp_path / "whole") == expected


def test_a_process_that_cuts_no_text_imports_no_compiler() -> None:
    code = "import sys, data_prep.tokenize_corpus; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
