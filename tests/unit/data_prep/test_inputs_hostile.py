"""Hostile files: each is read right or refused by name. Some 2,000 of them, against readers of a few lines."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import records_text
from data_prep.inputs import Document, InputError, Reading
from tests.reading import NO_LIMIT, json_lines, message_of, read, write, write_parquet, write_saved_dataset

COMPRESSIONS = st.sampled_from(["", ".gz", ".zst"])
UNIT_BYTES = st.integers(1, 80) | st.just(NO_LIMIT)
TEXTS = ["first\nline", "é\u2028😀", "third " * 30, "", "last"]


def hostile(max_examples: int) -> settings:
    """Files of one name are written over and over."""
    return settings(
        max_examples=max_examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def read_or_refused(path: Path, unit_bytes: int = NO_LIMIT, reading: Reading | None = None) -> list[Document] | None:
    """None when refused. Every other error is a failure, and so is a message without the name of the file."""
    try:
        return read(path, unit_bytes=unit_bytes, reading=reading)
    except InputError as error:
        assert str(error).startswith(str(path))
        return None


def plain_text(content: bytes) -> list[Document] | None:
    """What blank lines part, read in the simplest way; None for what is no text."""
    head = content[:4096]
    if 4 * head.count(0) >= max(4, len(head)) or content.startswith(b"PAR1\x15"):
        return None
    if b"\r" in content.strip() and b"\n" not in content:
        return None
    try:
        lines = [line.strip() for line in content.decode().removeprefix("\ufeff").split("\n")]
    except UnicodeDecodeError:
        return None
    documents: list[Document] = [[]]
    for line in lines:
        if line:
            documents[-1].append(line)
        elif documents[-1]:
            documents.append([])
    return [document for document in documents if document]


pieces_of_text = st.sampled_from(
    [
        *(b"\n", b"\n", b"\r\n", b"\r\n\r\n", b"\n\r\n", b"\r", b"\n \t\n", b"\x0c", "\u2028\x85".encode()),
        *(b"word", b"two words", "é字😀".encode(), b"\0", b"\0\0\0\0\0", b"\x1a", b"\xef\xbb\xbf", b"\xff\xfe"),
        *(b"\xed\xa0\xbd", b"\xc3", b"\xa9", b"\xf5\x80\x80\x80", b"\xc0\x80", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"),
        *(b"PAR1\x15\x00", b"\xff\xff\xff\xff", "text".encode("utf-16"), "text".encode("utf-16-le")),
    ]
)
pieces_of_sound_text = st.sampled_from([b"\n", b"\n\n", b"\r\n", b"\r", b"a\0b", "é\u2028".encode(), b" word ", b"x"])


@hostile(500)
@given(
    content=st.lists(pieces_of_text, max_size=12).map(b"".join)
    | st.lists(pieces_of_sound_text, max_size=16).map(b"".join)
    | st.binary(max_size=40),
    compression=COMPRESSIONS,
    unit_bytes=UNIT_BYTES,
)
def test_any_bytes_as_plain_text(tmp_path: Path, content: bytes, compression: str, unit_bytes: int) -> None:
    path = write(tmp_path / f"a.txt{compression}", content)
    assert read_or_refused(path, unit_bytes) == plain_text(content)


@hostile(150)
@given(content=st.lists(pieces_of_text | pieces_of_sound_text, max_size=8).map(b"".join), compression=COMPRESSIONS)
def test_any_bytes_as_one_document(tmp_path: Path, content: bytes, compression: str) -> None:
    path = write(tmp_path / f"a.txt{compression}", content)
    parted = plain_text(content)
    together = [[line for document in parted for line in document]] if parted is not None and content else parted
    found = read_or_refused(path, reading=Reading(document_boundary="file"))
    assert found == together or (not content and found in ([], [[]]))


sound_records = st.sampled_from(
    [
        *(b'{"text": "one"}', b'{"text": "two\\nlines", "text_id": 3}', b'{"text": null}', b'{"text": ""}\r', b""),
        *('{"text": "é\u2028\x85"}'.encode(), b'{"text": "\\u0000 \\ud83d\\ude00"}', b'{"n": NaN, "text": "n"}'),
        *(b'{"text": "twice", "text": "the last"}', b'{"text": "a\\rb"} ', b'\t{"text": "tab"}', b" \t"),
    ]
)
bad_records = st.sampled_from(
    [
        *(b"{", b"null", b"3", b'"text"', b"[]", b'{"txt": "a"}', b'{"text": 3}', b'{"text": ["a"]}', b'{"text": {}}'),
        *(b'{"text": "a"} x', b'{"text": "\\ud83d"}', b'{"text": "\xed\xa0\xbd"}', b'{"text": "\xff"}', b"{'a': 3}"),
        *(b'{"text": "a"}\r{"text": "b"}', b'{"text": "a\tb"}', b'{"text": "a\0b"}', b"[" * 5000, b"\xef\xbb\xbf{}"),
        *(b'{"text": "a", "n": ' + b"9" * 5000 + b"}", b"{}", b'{"text": "cut'),
    ]
)


@hostile(500)
@given(
    good=st.lists(sound_records, max_size=6),
    bad=st.none() | bad_records,
    more=st.lists(sound_records, max_size=3),
    compression=COMPRESSIONS,
    unit_bytes=UNIT_BYTES,
)
def test_any_records_as_json_lines(
    tmp_path: Path, good: list[bytes], bad: bytes | None, more: list[bytes], compression: str, unit_bytes: int
) -> None:
    path = write(tmp_path / f"a.jsonl{compression}", b"\n".join([*good, *([] if bad is None else [bad]), *more]))
    if bad is not None:
        assert f"{path}, line {len(good) + 1}: " in message_of(path, unit_bytes=unit_bytes)
        return
    texts = [json.loads(record)["text"] for record in (*good, *more) if record.strip()]
    expected = [[line.strip() for line in (text or "").split("\n") if line.strip()] for text in texts]
    assert read(path, unit_bytes=unit_bytes) == expected


@hostile(250)
@given(name=st.sampled_from(["a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst"]), place=st.integers(0, 10_000))
def test_a_compressed_file_cut_anywhere_is_refused(tmp_path: Path, name: str, place: int) -> None:
    content = write(tmp_path / name, json_lines(*TEXTS)).read_bytes()
    (tmp_path / name).write_bytes(content[: place % len(content)])
    assert read_or_refused(tmp_path / name) is None


@hostile(300)
@given(name=st.sampled_from(["a.jsonl.gz", "a.jsonl.zst"]), place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_compressed_file_with_a_flipped_bit_is_refused_or_reads_the_same(
    tmp_path: Path, name: str, place: int, bit: int
) -> None:
    content = bytearray(write(tmp_path / name, json_lines(*TEXTS)).read_bytes())
    expected = read(tmp_path / name)
    content[place % len(content)] ^= 1 << bit
    (tmp_path / name).write_bytes(content)
    assert read_or_refused(tmp_path / name) in (None, expected)


@hostile(150)
@given(place=st.integers(0, 10_000))
def test_a_table_cut_anywhere_is_refused(tmp_path: Path, place: int) -> None:
    for path in (
        write_parquet(tmp_path / "a.parquet", TEXTS, group_rows=2),
        write_saved_dataset(tmp_path / "saved", TEXTS, batch_rows=2),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: place % len(content)])
        with pytest.raises(InputError, match=path.name):
            read(path if path.suffix == ".parquet" else path.parent)


@hostile(300)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_parquet_file_with_a_flipped_bit_is_refused_or_has_as_many_rows(tmp_path: Path, place: int, bit: int) -> None:
    """Text and page headers have check sums; not so the footer, in which a column may be called otherwise."""
    path = write_parquet(tmp_path / "a.parquet", TEXTS, group_rows=2)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    found = read_or_refused(path)
    assert found is None or len(found) == len(TEXTS)


@hostile(200)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_an_arrow_file_with_a_flipped_bit_is_refused_or_has_as_many_rows(tmp_path: Path, place: int, bit: int) -> None:
    """Arrow has no check sums: a letter that became another is another letter."""
    path = write_saved_dataset(tmp_path, TEXTS, batch_rows=2)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        assert len(read(tmp_path)) == len(TEXTS)
    except InputError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize("wrong", ["a.txt", "a.jsonl", "b.txt.gz", "b.jsonl.zst"])
@pytest.mark.parametrize("right", [".txt.gz", ".jsonl.zst", ".parquet", "utf-16"])
def test_a_file_of_another_kind_than_its_name_says_is_refused_and_told_what_it_is(
    tmp_path: Path, right: str, wrong: str
) -> None:
    """In a compressed file it is the content that is compressed once more, or otherwise no text."""
    source = tmp_path / f"source{right}"
    if right == ".parquet":
        write_parquet(source, TEXTS)
    elif right == "utf-16":
        source.write_bytes("\n".join(TEXTS).encode("utf-16"))
    else:
        write(source, json_lines(*TEXTS))
    path = write(tmp_path / wrong, source.read_bytes())
    kind = {".txt.gz": "gzip", ".jsonl.zst": "zstd", ".parquet": "parquet", "utf-16": "UTF-16"}[right]
    assert f"is not text but {kind}; " in message_of(path)


@pytest.mark.parametrize("content", ["plain text", json_lines(*TEXTS), "\0" * 100])
def test_text_called_parquet_is_refused(tmp_path: Path, content: str) -> None:
    assert "not a sound parquet file" in message_of(write(tmp_path / "a.parquet", content))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"])
def test_a_file_of_zeros_as_a_crash_leaves_it_is_refused(tmp_path: Path, name: str) -> None:
    assert "is full of zero bytes, as UTF-16 or a damaged file is" in message_of(write(tmp_path / name, b"\0" * 100))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_has_no_documents(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, "")) == []


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet"])
def test_an_empty_file_that_should_have_a_beginning_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert f"{tmp_path / name}: empty, not even a " in message_of(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.zst"])
def test_a_line_beyond_all_measure_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(records_text, "_MAX_LINE_BYTES", 3_000_000)
    path = write(tmp_path / name, json_lines("good") + "x" * 5_000_000)
    assert f"{path}, line 2: longer than 3,000,000 bytes; is this text?" in message_of(path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_small_file_that_would_fill_the_memory_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(records_text, "_MAX_LINE_BYTES", 3_000_000)
    path = write(tmp_path / f"a.txt{ending}", b"x" * 400_000_000)
    tracemalloc.start()
    assert "line 1: longer than" in message_of(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 300_000_000


def test_names_that_are_not_utf8_are_read_too(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    assert read(write(path, "text")) == [["text"]]
