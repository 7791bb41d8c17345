"""Cleaning takes out what it says, counts it, and leaves alone what scripts are spelled with."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cleaning import Cleaner, CleaningConfig, sum_counts
from data_prep.records import Document, paragraphs_of
from deberta_scale.config_data import ConfigError

UNITS = ("documents", "paragraphs", "characters")


def clean(document: Document, **options: Any) -> Document | None:
    return Cleaner(CleaningConfig(**options)).clean(document)


def language_of(text: str) -> str:
    """A plug-in: as good a guess as these tests need."""
    return "el" if any("GREEK" in unicodedata.name(character, "") for character in text) else "en"


def fails(text: str) -> str:
    raise RuntimeError("no model")


def says_nothing(text: str) -> None:
    return None


HERE = f"{__name__}:"
awkward = st.text(st.sampled_from("ab ﬁé\u0301\u00a0\u200d\ufeff\x00\x0b\x85\tＡ"), max_size=12)
documents = st.lists(awkward | st.text(max_size=8), max_size=6).map("\n".join).map(paragraphs_of)
configs = st.builds(
    CleaningConfig,
    remove_control_characters=st.booleans(),
    unicode_form=st.sampled_from(["none", "NFC", "NFKC"]),
    min_paragraph_characters=st.integers(0, 4),
    max_repeated_paragraph_fraction=st.sampled_from([0.0, 0.4, 1.0]),
    min_document_characters=st.integers(0, 9),
    max_document_characters=st.none() | st.integers(9, 30),
    language=st.none() | st.just({"callable": f"{HERE}language_of", "keep": ["en"]}),
)


@given(configs, documents)
def test_cleaning_twice_is_cleaning_once(config: CleaningConfig, document: Document) -> None:
    cleaned = Cleaner(config).clean(document)
    if cleaned:
        assert Cleaner(config).clean(cleaned) == cleaned
        assert all(paragraph and paragraph == paragraph.strip() for paragraph in cleaned)


@given(configs, st.lists(documents, max_size=8), st.integers(0, 8))
def test_what_came_in_is_dropped_or_comes_out(config: CleaningConfig, corpus: list[Document], cut: int) -> None:
    cleaner = Cleaner(config)
    left = [document for document in map(cleaner.clean, corpus) if document]
    counts = cleaner.counts
    for unit in UNITS:
        dropped = sum(count for key, count in counts.items() if key.endswith(f".{unit}_dropped"))
        assert counts[f"{unit}_in"] - dropped == counts[f"{unit}_out"]
    assert counts["documents_in"] == sum(map(bool, corpus))
    assert counts["documents_out"] == len(left)
    assert counts["characters_out"] == sum(len(paragraph) for document in left for paragraph in document)

    parts = [Cleaner(config), Cleaner(config)]
    for number, document in enumerate(corpus):
        parts[number >= cut].clean(document)
    assert sum_counts(part.counts for part in parts) == dict(sorted(counts.items()))


@given(st.lists(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs", "Cf"])), max_size=4))
def test_by_default_only_the_byte_order_mark_is_missed_of_text(lines: list[str]) -> None:
    document = paragraphs_of("\n".join(lines))
    expected = paragraphs_of("\n".join(document).replace("\ufeff", ""))
    assert (clean(document) or []) == expected


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم به خانه بروم",  # Persian: a zero-width non-joiner inside a word
        "\u0915\u094d\u200d\u0937 हिन्दी",  # Devanagari: a joiner asks for the half form
        "ภาษา\u200bไทย",  # Thai: a zero-width space parts words
        "👩\u200d👩\u200d👧 👍🏽 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f ❤\ufe0f",
        "\u202bעברית\u202c and \u200fالعربية",  # marks of direction
        "column\tcolumn\u00a0column",
    ],
)
@pytest.mark.parametrize("form", ["none", "NFC"])
def test_what_scripts_and_emoji_are_spelled_with_survives(text: str, form: str) -> None:
    expected = text if form == "none" else unicodedata.normalize("NFC", text)
    assert clean([text], unicode_form=form) == [expected]


def test_control_characters_go_and_those_that_part_words_become_spaces() -> None:
    assert clean(["\ufeffa\x00b\x1bc\x9fd\ufffe", "one\x0ctwo\rthree\x85four", "\x07"]) == [
        "abcd",
        "one two three four",
    ]
    assert clean(["a\x00b"], remove_control_characters=False) == ["a\x00b"]


def test_a_document_of_nothing_but_control_characters_is_counted() -> None:
    cleaner = Cleaner(CleaningConfig())
    assert cleaner.clean(["\x01\x02", "\x03"]) is None
    assert cleaner.counts["control_characters.documents_dropped"] == 1
    assert cleaner.counts["control_characters.characters_dropped"] == 3


def test_a_document_without_text_is_none_of_the_filters_business() -> None:
    cleaner = Cleaner(CleaningConfig(min_document_characters=10))
    assert cleaner.clean([]) == []
    assert not any(cleaner.counts.values())


def test_unicode_forms() -> None:
    assert clean(["e\u0301 ﬁ Ａ"], unicode_form="NFC") == ["é ﬁ Ａ"]
    assert clean(["e\u0301 ﬁ Ａ"], unicode_form="NFKC") == ["é fi A"]


def test_lengths() -> None:
    assert clean(["ab", "abc", "a"], min_paragraph_characters=2) == ["ab", "abc"]
    assert clean(["abc", "de"], min_document_characters=5) == ["abc", "de"]
    assert clean(["abc", "de"], min_document_characters=6) is None
    assert clean(["abc", "de"], max_document_characters=5) == ["abc", "de"]
    assert clean(["abc", "de"], max_document_characters=4) is None


def test_a_document_of_repeated_lines_is_left_out() -> None:
    menu = ["Home", "About", "Home", "Home"]
    assert clean(menu, max_repeated_paragraph_fraction=0.5) == menu
    assert clean(menu, max_repeated_paragraph_fraction=0.49) is None


def test_documents_of_other_languages_are_left_out() -> None:
    options = {"language": {"callable": f"{HERE}language_of", "keep": ["en"]}}
    assert clean(["English"], **options) == ["English"]
    assert clean(["English", "Ελληνικά"], **options) is None


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_module_here:f", "cannot import no_such_module_here .* PYTHONPATH"),
        (f"{HERE}langage_of", "has no function langage_of; it has .*language_of"),
        (f"{HERE}UNITS", "has no function UNITS"),
        (f"{HERE}fails", "failed with RuntimeError: no model; on the document that begins 'some text'"),
        (f"{HERE}says_nothing", "returned None; it must return a code"),
        ("language_of", "write it as package.module:function"),
    ],
)
def test_an_unusable_language_function_is_named(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        clean(["some text"], language={"callable": name, "keep": ["en"]})
    assert name in str(caught.value)
    if ":" in name:
        assert isinstance(caught.value, ConfigError)


def test_a_config_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_document_characters 5 is below min_document_characters 6"):
        CleaningConfig(max_document_characters=5, min_document_characters=6)
    with pytest.raises(ValueError, match="min_lenght"):
        CleaningConfig.model_validate({"min_lenght": 3})


def test_real_text_passes_unchanged(sample_documents: list[str]) -> None:
    cleaner = Cleaner(CleaningConfig())
    for document in map(paragraphs_of, sample_documents):
        assert cleaner.clean(document) is document
