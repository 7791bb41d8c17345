"""Symbols that the user asks for are pieces that no text cuts, here and in the exported tokenizer."""

import re
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.inputs import Reading, find_inputs
from data_prep.train_tokenizer import VocabularySizeError, train
from data_prep.user_symbols import check_user_symbols
from deberta_scale.convert.tokenizer_files import fast_tokenizer, tokenizer_files
from deberta_scale.data.tokenizer import SPECIAL, Tokenizer
from tests.vocabularies import train_pieces

SYMBOLS = ("<ent>", "</ent>", "<ent>s", "->", "e.g.", '"q,r"', "§§", "人名", "--x")
VOCABULARY = 700
TEXTS = [
    "<ent> Emma </ent> was <ent>Emma</ent>, and two <ent>s; <<ent>> <ent>ss <ent><ent>",
    'x->y -> z, e.g. a "q,r" and "q,r, §§§ is §§ and §, 人名は人名。x--x --xx',
    "＜ent＞ is wide, <ent and ent> are not whole, <en t>, ﬁne ½, <0x41>",
    "<ent>",
    " <ent>  ",
    "",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, sample_documents: list[str]) -> Path:
    """Of English with some of the characters of the symbols."""
    parent = tmp_path_factory.mktemp("symbols")
    lines = [line for document in sample_documents[:4] for line in document.split("\n")]
    lines += ["i< 3 and x< 5 or x< 7, a< b ent>( ent>( prudent> and spent>", "(<ent> x-> >( b"] * 200
    (parent / "text.txt").write_text("\n".join(lines))
    train(find_inputs([parent / "text.txt"]), Reading(), VOCABULARY, parent / "tokenizer", user_symbols=SYMBOLS)
    return parent / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.piece(token) for token in tokenizer.encode([text])[0]]


def test_symbols_take_the_ids_after_the_special_pieces_and_bytes_follow(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocabulary_size)]
    first = len(SYMBOLS) + 4
    assert pieces[:first] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *SYMBOLS]
    assert pieces[first : first + 256] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokenizer.pieces == tokenizer.mask_id == VOCABULARY and pieces[-1] == "[MASK]"
    assert tokenizer.symbols == SYMBOLS
    assert tokenizer.training and tokenizer.training["user_symbols"] == list(SYMBOLS)


def test_symbols_are_pieces_and_the_longest_is_found(tokenizer: Tokenizer) -> None:
    assert pieces_of(tokenizer, "<ent><ent>s</ent>") == ["▁", "<ent>", "<ent>s", "</ent>"]
    assert pieces_of(tokenizer, "§§ 人名") == ["▁", "§§", "▁", "人名"]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_only_what_the_user_asked_for_is_a_symbol_in_a_model_of_any_kind(model_type: str) -> None:
    """A text is cut as by sentencepiece alone where it has no symbol."""
    lines = ["the end of the day is the end of the way"] * 50
    model = train_pieces(lines, 300, own=("<x>", "->"), model_type=model_type)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = Tokenizer(processor)
    assert tokenizer.symbols == ("<x>", "->")
    text = "where they ended, he said"
    assert pieces_of(tokenizer, text) == processor.encode(text, out_type=str)


def test_likelier_pieces_that_reach_over_a_border_cut_no_symbol(tmp_path: Path) -> None:
    """sentencepiece alone would cut this one."""
    letters = "abcdefghijklmnop"
    (tmp_path / "text.txt").write_text("\n".join(f"{a}>={b} {b}-{a}" for a in letters for b in letters))
    train(find_inputs([tmp_path / "text.txt"]), Reading(), 284, tmp_path / "tokenizer", user_symbols=("->",))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert tokenizer.processor.encode("a->=b", out_type=str) == ["▁a", "-", ">=", "b"]
    assert pieces_of(tokenizer, "a->=b") == ["▁a", "->", "=", "b"]
    assert pieces_of(tokenizer, "a>=b") == ["▁a", ">=", "b"]
    fast = pytest.importorskip("tokenizers", reason="what the export is for; pip install '.[peers]'").Tokenizer
    exported = fast.from_str(fast_tokenizer(tokenizer)).encode("a->=b", add_special_tokens=False)
    assert exported.tokens == ["▁a", "->", "=", "b"]


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.sampled_from([*SYMBOLS, "<", "x<", "ent>", ">(", "(", " ", "x", "é", "😀", "s", "-", "人"])))
def test_any_text_keeps_its_symbols_whole_and_comes_back(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = " ".join("".join(parts).split())
    [ids] = tokenizer.encode([text])
    longest_first = "|".join(re.escape(symbol) for symbol in sorted(SYMBOLS, key=len, reverse=True))
    found = [tokenizer.piece(token) for token in ids if tokenizer.piece(token) in SYMBOLS]
    assert found == re.findall(longest_first, text)
    assert tokenizer.decode(ids) == text and tokenizer.unk_id not in ids


def test_symbols_beside_masks_and_added_tokens_are_found_too(directory: Path) -> None:
    grown = Tokenizer(Tokenizer.load(directory).model, added_tokens=("<drug>",))
    ids = grown.encode_masked("a [MASK]<ent> [MASK] <ent><drug><ent>")
    pieces = [grown.piece(token) for token in ids]
    assert pieces == ["▁a", "[MASK]", "<ent>", "[MASK]", "▁", "<ent>", "<drug>", "<ent>"]


def test_a_symbol_can_be_predicted(tokenizer: Tokenizer) -> None:
    flags = tokenizer.flags()
    assert not any(flags[4 : 4 + len(SYMBOLS)] & SPECIAL)


def test_the_exported_tokenizer_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")
    for name, content in tokenizer_files(tokenizer, 512).items():
        (tmp_path / name).write_bytes(content)
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "x<ent>(", "i x<ent> x<ent>( ent>(", "x-->(> [MASK] <ent>", "[MASK]<ent> <ent>[MASK]"]
    for text in texts:
        assert stock(text).input_ids == [1, *tokenizer.encode_masked(text), 2], text
    assert stock.decode(stock(TEXTS[0]).input_ids, skip_special_tokens=True) == TEXTS[0]
    assert Tokenizer.load(tmp_path).describe() == tokenizer.describe(), "read back, with the same symbols"


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (("<a>", ""), "'' is empty"),
        (("<a>", "<b>", "<a>"), "'<a>' is given twice"),
        (("[PAD]",), "'[PAD]' is a special piece"),
        (("[MASK]",), "'[MASK]' is a special piece"),
        (("<a b>",), "'<a b>' holds white space"),
        (("<a>\n",), "'<a>\\n' holds white space"),
        (("a\u3000b",), "holds white space"),
        (("▁<a>",), "'▁<a>' holds white space, or the sign for it"),
        (("<0x41>",), "'<0x41>' spells a byte piece"),
        (("a\0",), "'a\\x00' holds a control character"),
        (("\ud800",), "holds a control character or half a surrogate pair"),
        (("\u0301a",), "begins with a combining mark"),
        (("ﬁne",), "'ﬁne' is 'fine' after Unicode normalisation (NFKC), as every text is; give that"),
        (("e\u0301",), "is 'é' after"),
    ],
    ids=ascii,
)
def test_a_symbol_that_cannot_be_had_is_named_with_what_is_wrong(symbols: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ValueError, match=f"^--user-symbols: .*{re.escape(expected)}"):
        check_user_symbols(symbols)


def test_more_symbols_than_the_vocabulary_holds_are_refused_before_any_text_is_read(tmp_path: Path) -> None:
    symbols = tuple(f"<{number}>" for number in range(100))
    with pytest.raises(VocabularySizeError, match="256 bytes, 4 special pieces, 100 user symbols alone are 360"):
        train([], Reading(), 360, tmp_path / "out", user_symbols=symbols)


def test_a_vocabulary_too_small_for_symbols_and_characters_names_the_size_that_works(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc def ghi jkl " * 20)
    files = find_inputs([tmp_path / "text.txt"])
    with pytest.raises(VocabularySizeError, match="2 user symbols and the characters of this text need") as caught:
        train(files, Reading(), 264, tmp_path / "out", user_symbols=("<a>", "<b>"))
    found = re.search(r"need (\d+)", str(caught.value))
    assert found and train(files, Reading(), int(found[1]), tmp_path / "out", user_symbols=("<a>", "<b>"))
