"""Added tokens are ids after [MASK], words of their own, and part of what a tokenizer is known by."""

import json
import re
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_scale.data.tokenizer import WORD_START, Tokenizer, TokenizerError
from deberta_scale.data.tokenizer_pieces import Pieces, any_of
from tests.vocabularies import train_byte_pairs, write_vocabulary_and_merges

ADDED = ("<drug>", "<drug>-like", "COVID-19", "New York")
TEXTS = ["She took <drug> daily.", "<drug>-like effects of COVID-19, in New York: it was", "no such word", ""]


@pytest.fixture(scope="module", params=["sentencepiece", "byte_pair"])
def plain(
    request: pytest.FixtureRequest,
    prepared_shards: Path,
    sample_documents: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Tokenizer:
    if request.param == "sentencepiece":
        return Tokenizer.load(prepared_shards / "tokenizer")
    pytest.importorskip("tokenizers", reason="what cuts text into byte pairs; pip install '.[peers]'")
    vocabulary = train_byte_pairs(sample_documents[:10], 600)
    return Tokenizer.load(write_vocabulary_and_merges(vocabulary, tmp_path_factory.mktemp("byte-pairs")))


def with_added(plain: Tokenizer, *tokens: str) -> Tokenizer:
    return Tokenizer(plain.model, added_tokens=tokens)


@pytest.fixture(scope="module")
def tokenizer(plain: Tokenizer) -> Tokenizer:
    return with_added(plain, *ADDED)


def written(tokenizer: Tokenizer, directory: Path) -> Path:
    for name, content in tokenizer.files().items():
        (directory / name).write_bytes(content)
    return directory


def test_their_ids_follow_the_mask_and_no_other_id_moves(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    first = plain.vocabulary_size
    assert [tokenizer.piece(first + n) for n in range(len(ADDED))] == list(ADDED)
    assert tokenizer.vocabulary_size == first + len(ADDED)
    assert (tokenizer.mask_id, tokenizer.pieces) == (plain.mask_id, plain.pieces)
    assert (tokenizer.flags()[:first] == plain.flags()).all()


def test_they_are_words_that_can_be_predicted(tokenizer: Tokenizer) -> None:
    assert (tokenizer.flags()[-len(ADDED) :] == WORD_START).all()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("She took <drug> daily.", ["She took", "<drug>", " daily."]),
        ("<drug>", ["<drug>"]),
        ("<drug><drug>  <drug>\t", ["<drug>", "<drug>", "<drug>"]),
        ("COVID-19 in New York", ["COVID-19", " in", "New York"]),
        ("COVID-", ["COVID-"]),
    ],
)
def test_they_part_the_text_and_take_the_space_before_them(
    plain: Tokenizer, tokenizer: Tokenizer, text: str, parts: list[str]
) -> None:
    expected: list[int] = []
    for part in parts:
        expected += [tokenizer.id_of_token[part]] if part in ADDED else plain.encode([part])[0].tolist()
    assert tokenizer.encode([text.strip()])[0].tolist() == expected
    assert tokenizer.encode_masked(text.strip()) == expected


def test_text_right_after_one_has_no_space_sign(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    word, added = "kind", tokenizer.id_of_token["<drug>"]
    [beside_word] = plain.encode([f"it was {word}), s"])
    [beside_added] = tokenizer.encode(["it was <drug>), s"])
    after = beside_added[beside_added.tolist().index(added) + 1 :]
    assert beside_word[-len(after) :].tolist() == after.tolist() and len(after) > 2


def test_the_longest_that_begins_somewhere_is_taken(tokenizer: Tokenizer) -> None:
    [ids] = tokenizer.encode(["<drug>-like"])
    assert [tokenizer.piece(token) for token in ids] == ["<drug>-like"]


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.sets(st.text("ab.|(", min_size=1, max_size=4), min_size=1, max_size=8).map(tuple),
    text=st.text("ab.|(x", max_size=30),
)
def test_they_are_found_as_by_trying_the_longest_first(tokens: tuple[str, ...], text: str) -> None:
    slowly = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    assert any_of(tokens).split(text) == re.split(f"({slowly})", text)


def test_texts_without_them_are_cut_as_before(
    plain: Tokenizer, tokenizer: Tokenizer, sample_documents: list[str]
) -> None:
    texts = sample_documents[20].split("\n")
    for before, after in zip(plain.encode(texts), tokenizer.encode(texts), strict=True):
        assert before.tolist() == after.tolist() and before.dtype == after.dtype


def test_decoding_gives_the_text_back_with_a_space_before_each(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    ids = tokenizer.encode_masked("A [MASK] of <drug>, [MASK].")
    assert tokenizer.decode([tokenizer.cls_id, *ids, tokenizer.sep_id]) == "A [MASK] of <drug>, [MASK]."


def test_a_directory_with_them_loads_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = Tokenizer.load(written(tokenizer, tmp_path))
    assert loaded.describe() == tokenizer.describe()
    assert loaded.added_tokens == ADDED and loaded.describe()["added_tokens"] == list(ADDED)
    assert [i.tolist() for i in loaded.encode(TEXTS)] == [i.tolist() for i in tokenizer.encode(TEXTS)]


def test_other_added_tokens_or_another_order_are_another_tokenizer(plain: Tokenizer) -> None:
    names = [
        with_added(plain, *tokens).sha256 for tokens in ((), ("<a>",), ("<a>", "<b>"), ("<b>", "<a>"), ("<a><b>",))
    ]
    assert len(set(names)) == len(names) and names[0] == plain.sha256


def test_added_tokens_that_were_edited_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = written(tokenizer, tmp_path) / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | {"added_tokens": [*ADDED, "<more>"]}))
    with pytest.raises(TokenizerError, match=r"its sha256 with the added_tokens of metadata\.json is .* copy the dir"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("tokens", [("",), ("[MASK]",), ("[CLS]",), ("<a>", "<a>")])
def test_tokens_that_cannot_be_told_apart_are_refused(plain: Tokenizer, tokens: tuple[str, ...]) -> None:
    with pytest.raises(TokenizerError, match="is empty, special or there twice"):
        with_added(plain, *tokens)


def test_the_spare_rows_of_a_released_model_come_first() -> None:
    class Released:
        """A model with the size of the released V3 vocabulary."""

        kind, sha256, size, mask_id = "sentencepiece", "", 128_000, 128_000

    model: Pieces = Released()  # type: ignore[assignment]
    tokenizer = Tokenizer(model, added_tokens=tuple(f"<{n}>" for n in range(99)))
    assert tokenizer.mask_id == 128_000
    assert list(tokenizer.id_of_token.values()) == list(range(128_000, 128_100))
    assert tokenizer.vocabulary_size == 128_100, "the rows of the released models"


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json"])
def test_tokens_that_transformers_added_are_read(plain: Tokenizer, tmp_path: Path, name: str) -> None:
    first = plain.vocabulary_size
    ids = {"[CLS]": 1, "[MASK]": plain.mask_id, "<b>": first + 1, "<a>": first}
    content = {"added_tokens": [{"id": i, "content": t} for t, i in ids.items()]} if name == "tokenizer.json" else ids
    written(plain, tmp_path)
    (tmp_path / "metadata.json").unlink()
    path = tmp_path / name
    path.write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).added_tokens == ("<a>", "<b>")

    path.write_text(path.read_text().replace(f"{first + 1}", f"{first + 2}"))
    with pytest.raises(TokenizerError, match=rf"{name}: the ids of its added tokens are .* must follow {first - 1}"):
        Tokenizer.load(tmp_path)
    path.write_text(path.read_text().replace(f"{plain.mask_id}", "4"))
    with pytest.raises(TokenizerError, match=rf"{name}: \[MASK\] is 4, the vocabulary beside it gives {plain.mask_id}"):
        Tokenizer.load(tmp_path)


def test_a_processor_can_have_them_too(prepared_shards: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(prepared_shards / "tokenizer" / "spm.model"))
    tokenizer = Tokenizer(processor, "00", ("<a>",))
    assert tokenizer.encode(["<a>"])[0].tolist() == [601]
