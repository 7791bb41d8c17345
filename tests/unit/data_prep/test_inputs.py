"""Every document of every kind of input comes out once, however it is cut; what cannot be read is named."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.inputs import Reading, find_inputs, in_short, plan_units
from tests.reading import NO_LIMIT, json_lines, message_of, read, write

TWO_DOCUMENTS = "first line\n  second line\r\n\n \t\nanother document"
AS_PARAGRAPHS = [["first line", "second line"], ["another document"]]


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst"])
def test_plain_text_is_cut_at_blank_lines(tmp_path: Path, ending: str) -> None:
    assert read(write(tmp_path / f"a{ending}", TWO_DOCUMENTS)) == AS_PARAGRAPHS


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst"])
def test_a_file_can_be_one_document(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", TWO_DOCUMENTS)
    assert read(path, reading=Reading(document_boundary="file")) == [[*AS_PARAGRAPHS[0], *AS_PARAGRAPHS[1]]]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_each_json_line_is_a_document_and_its_line_feeds_part_paragraphs(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", json_lines("first line\n\nsecond line \n", "another document"))
    assert read(path) == AS_PARAGRAPHS


def test_the_text_of_json_lines_can_stand_under_another_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": 3, "body": "this"}\n')
    assert read(path, reading=Reading(text_field="body")) == [["this"]]


def test_json_documents_without_text_are_counted_as_empty_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines("one", " \n ", None, "two"))
    assert read(path) == [["one"], [], [], ["two"]]


def test_files_of_a_directory_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.jsonl.gz", json_lines("first"))
    write(tmp_path / "deep" / "a.txt.zst", "third")
    write(tmp_path / "notes.md", "no input")
    assert read(tmp_path) == [["first"], ["second"], ["third"]]
    assert [file.name for file in find_inputs([tmp_path])] == ["a.jsonl.gz", "b.txt", "deep/a.txt.zst"]


def test_a_file_whose_whole_name_is_an_ending_is_of_that_kind(tmp_path: Path) -> None:
    assert read(write(tmp_path / ".jsonl", json_lines("text"))) == [["text"]]
    assert read(write(tmp_path / ".jsonl.gz", json_lines("text"))) == [["text"]]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_record(tmp_path: Path, sign: str) -> None:
    assert read(write(tmp_path / "a.txt", f"one{sign}two\n\nthree")) == [[f"one{sign}two"], ["three"]]
    assert read(write(tmp_path / "a.jsonl", json_lines(f"one{sign}two"))) == [[f"one{sign}two"]]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "\ufefftext")) == [["text"]]
    assert read(write(tmp_path / "a.jsonl", "\ufeff" + json_lines("text"))) == [["text"]]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_members_one_after_the_other_are_one_text(tmp_path: Path, ending: str) -> None:
    parts = [write(tmp_path / f"part{ending}", text).read_bytes() for text in ("one ", "text\n")]
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(b"".join(parts))
    assert read(path) == [["one text"]]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst"])
def test_compressed_files_are_never_cut(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, json_lines("one", "two"))
    assert [len(unit) for unit in plan_units(find_inputs([tmp_path]), Reading(), 1)] == [1]


def test_a_line_longer_than_a_block_is_read_whole(tmp_path: Path) -> None:
    text = "long " * 700_000 + "end"
    assert read(write(tmp_path / "a.txt", f"{text}\n\nshort"), unit_bytes=2_000_000) == [[text], ["short"]]


# Lines that are blank or not in every way, next to each other in every way.
text_files = st.lists(
    st.sampled_from(["word", "two words", "é字😀", "", "", " ", "\u2028", "\u3000", "a\u2028b", "\r", "\ufeff"]),
    max_size=12,
).map("\n".join)
json_files = st.lists(
    st.sampled_from(["", *map(json_lines, ["word", "é字😀", "two\nlines", "", "a\u2028b"])]).map(str.strip), max_size=10
).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(text=text_files, last=st.sampled_from(["", "\n", "\n\n"]), unit_bytes=st.integers(1, 40))
def test_cutting_plain_text_anywhere_gives_each_document_once(text: str, last: str, unit_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory) / "a.txt", text + last)
        assert read(path, unit_bytes=unit_bytes) == read(path)


@settings(max_examples=300, deadline=None)
@given(text=json_files, last=st.sampled_from(["", "\n"]), unit_bytes=st.integers(1, 60))
def test_cutting_json_lines_anywhere_gives_each_document_once(text: str, last: str, unit_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory) / "a.jsonl", text + last)
        assert read(path, unit_bytes=unit_bytes) == read(path)


def test_a_lone_byte_order_mark_is_a_blank_line_from_both_sides_of_a_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff\ntext")
    assert read(path, unit_bytes=4) == read(path) == [["text"]]


def test_units_are_filled_across_files(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.txt", "1234")
    units = plan_units(find_inputs([tmp_path]), Reading(), unit_bytes=8)
    assert [[part.file.name for part in unit] for unit in units] == [["a.txt", "b.txt"], ["c.txt", "d.txt"]]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert message_of(tmp_path / "none.txt") == f"{tmp_path / 'none.txt'}: no such file or directory"


def test_a_directory_without_text_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text")
    assert f"{tmp_path}: no file in this directory ends in .txt" in message_of(tmp_path)


def test_an_unknown_ending_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text")
    assert f"{path}: unknown kind of file; names must end in .txt, .txt.gz, .txt.zst, .jsonl" in message_of(path)


def test_a_file_named_twice_is_an_error_even_by_way_of_a_directory_or_link(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    assert f"{path}: given twice" in message_of(path, tmp_path)
    (tmp_path / "b.txt").symlink_to(path)
    assert f"{tmp_path / 'b.txt'}: given twice" in message_of(tmp_path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst"])
def test_a_compressed_file_without_a_byte_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert f"{tmp_path / name}: empty" in message_of(tmp_path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst"])
@pytest.mark.parametrize("lost_bytes", [1, 20])
def test_a_compressed_file_cut_short_is_named(tmp_path: Path, name: str, lost_bytes: int) -> None:
    path = write(tmp_path / name, json_lines(*(f"text number {number}" for number in range(300))))
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    assert f"{path}: the {'gzip' if 'gz' in name else 'zstd'} stream is cut short" in message_of(path)


@pytest.mark.parametrize(("name", "kind"), [("a.txt.gz", "gzip"), ("a.jsonl.zst", "zstd")])
def test_a_file_that_is_not_compressed_as_its_name_says_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("plain text")
    assert f"{tmp_path / name}: not a sound {kind} file" in message_of(tmp_path / name)


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst"])
@pytest.mark.parametrize("unit_bytes", [3, NO_LIMIT])
def test_text_that_is_not_utf8_is_an_error_with_line_and_offset(tmp_path: Path, ending: str, unit_bytes: int) -> None:
    path = write(tmp_path / f"a{ending}", b"good\n\ncaf\xe9\n\ngood")
    expected = (
        f"{path}, line 3: not UTF-8: byte 0xe9 at offset 9 of the text; convert the file, for instance with iconv"
    )
    assert message_of(path, unit_bytes=unit_bytes) == expected


def test_the_offset_of_a_bad_byte_counts_the_byte_order_mark(tmp_path: Path) -> None:
    assert "byte 0xe9 at offset 6" in message_of(write(tmp_path / "a.txt", b"\xef\xbb\xbfcaf\xe9"))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ('{"text": "cut', "not valid JSON: Unterminated string starting at at column 10"),
        ('{"text": "one"} {"text": "two"}', "not valid JSON: Extra data at column 17"),
        ('["text"]', "expected a JSON object with the key 'text'"),
        ('{"txet": "text"}', "the record has no key 'text'; did you mean the text field 'txet'?"),
        ('{"id": 1, "body": "text"}', "the record has no key 'text'; it has 'id', 'body'"),
        ("{}", "the record has no key 'text'; it has none"),
        ('{"text": ["text"]}', "'text' is not a string but list"),
        ('{"text": "\\ud83d"}', "'text' holds half a surrogate pair"),
        ('{"id": ' + "1" * 5000 + "}", "not usable JSON"),
        ("[" * 100_000, "not usable JSON: nested too deeply"),
    ],
    ids=lambda value: value[:30],
)
@pytest.mark.parametrize("unit_bytes", [20, NO_LIMIT])
def test_a_bad_json_line_is_an_error_with_its_number(
    tmp_path: Path, record: str, expected: str, unit_bytes: int
) -> None:
    path = write(tmp_path / "a.jsonl", json_lines("good", "good") + "\n" + record + "\n" + json_lines("good"))
    assert f"{path}, line 4: {expected}" in message_of(path, unit_bytes=unit_bytes)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_bad_line_of_a_compressed_file_has_its_number_too(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.jsonl{ending}", json_lines(*["good"] * 100_000) + "bad\n" + json_lines("good"))
    assert f"{path}, line 100001: not valid JSON" in message_of(path)


def test_many_files_are_named_by_the_first(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.txt", "text") for name in "abc"]
    assert in_short(find_inputs(paths[:1])) == str(paths[0])
    assert in_short(find_inputs(paths)) == f"{paths[0]} and 2 more"
